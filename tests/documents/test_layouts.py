"""How a collator lays rows out is seen on two small rows, whatever it pads them to."""

from __future__ import annotations

import functools

import pytest
import torch
from sftcore_plugins.collators.padded import PaddedCollator

from sftcore import ModelError, SFTConfig, SFTTrainer
from sftcore.documents.layouts import Layout, layout_of
from sftcore.plugin_api import flatten_rows


@pytest.mark.parametrize("multiple", [1, 3, 4, 5, 8, 64])
@pytest.mark.parametrize("packed", [True, False])
def test_padding_is_no_document(packed, multiple):
    flatten = functools.partial(flatten_rows, pad_token_id=0, pad_to_multiple_of=multiple)
    assert layout_of(PaddedCollator(0, multiple), packed=packed) == Layout(packed, flattened=False)
    assert layout_of(flatten, packed=packed) == Layout(shared=True, flattened=True)


@pytest.mark.parametrize(
    "positions",
    [[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7]],
    ids=["padding alone restarts", "each token of padding", "nothing"],
)
def test_restarts_of_padding_do_not_stand_for_those_of_documents(positions):
    def collate(rows):
        batch = PaddedCollator(0, 8)(rows)
        return {**batch, "position_ids": torch.tensor([positions] * 2)}

    with pytest.raises(ModelError, match="without position_ids that restart at each of them"):
        layout_of(collate, packed=True)


def test_packed_rows_that_are_padded_to_a_multiple_train_as_without(tmp_path, tokenizer, llama):
    from datasets import Dataset

    rows = Dataset.from_list([{"text": "say hello, world " * (1 + i % 3)} for i in range(6)])
    losses = []
    for multiple in (None, 64):
        keys = {"packing": True, "max_length": 50, "pad_to_multiple_of": multiple, "plugins": {"attention": "sdpa"}}
        args = SFTConfig(str(tmp_path), use_cpu=True, max_steps=1, learning_rate=0.0, report_to="none", **keys)
        losses.append(SFTTrainer(llama, args, train_dataset=rows, processing_class=tokenizer).train().training_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
