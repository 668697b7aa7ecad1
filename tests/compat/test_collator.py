"""TRL's collator: the same batches as the installed TRL makes, and documents that stay apart where TRL's do not."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as Theirs

from sftcore import DataCollatorForLanguageModeling, SFTConfig, SFTTrainer
from sftcore.core.errors import OptionTypeError
from tests.conftest import make_llama

PLAIN = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}]
LABELLED = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4, 5], "labels": [4, -100]}]
PACKED = [
    {"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4], "seq_lengths": [3, 1]},
    {"input_ids": [5, 6], "labels": [5, 6], "seq_lengths": [2]},
]


def same(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert ours[name].dtype == value.dtype, name
            assert ours[name].tolist() == value.tolist(), name
        else:
            assert ours[name] == value, name


@pytest.mark.parametrize("rows", [PLAIN, LABELLED, PLAIN[:1]])
@pytest.mark.parametrize(
    "options",
    [{}, {"pad_to_multiple_of": 4}, {"return_position_ids": True, "pad_to_multiple_of": 8}, {"padding_free": True}],
)
def test_batches_are_those_of_trl(rows, options):
    same(DataCollatorForLanguageModeling(0, **options)(rows), Theirs(0, **options)(rows))


@pytest.mark.parametrize("options", [{"padding_free": True}, {"return_position_ids": True}])
def test_batches_of_packed_rows_are_those_of_trl(options):
    ours, theirs = DataCollatorForLanguageModeling(9, **options)(PACKED), Theirs(9, **options)(PACKED)
    if "return_position_ids" in options:
        # TRL trains the last token of a document to predict the next one's first
        assert theirs.pop("labels").tolist() == [[1, 2, 3, 4], [5, 6, -100, -100]]
        assert ours.pop("labels").tolist() == [[-100, 2, 3, -100], [-100, 6, -100, -100]]
    same(ours, theirs)


@given(rows=st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=9), min_size=1, max_size=5), free=st.booleans())
@settings(deadline=None, max_examples=60)
def test_whatever_the_lengths_the_batch_is_that_of_trl(rows, free):
    examples = [{"input_ids": ids} for ids in rows]
    same(DataCollatorForLanguageModeling(0, free)(examples), Theirs(0, free)(examples))


def test_padding_behind_a_padding_free_row_is_one_document():
    batch = DataCollatorForLanguageModeling(0, padding_free=True, pad_to_multiple_of=4)(PLAIN)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 5, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5, 8]
    assert (batch["max_length_k"], batch["seq_idx"].tolist()) == (3, [[0, 0, 0, 1, 1, 2, 2, 2]])


def test_padded_packed_rows_have_positions_in_the_place_of_a_mask_that_lets_documents_read_each_other():
    batch = DataCollatorForLanguageModeling(9)(PACKED)
    assert "attention_mask" not in batch
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0], [0, 1, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100], [-100, 6, -100, -100]]


def test_weights_travel_along():
    rows = [{"input_ids": [1, 2], "weights": [0.0, 0.5]}, {"input_ids": [3]}]
    assert DataCollatorForLanguageModeling(0)(rows)["weights"].tolist() == [[0.0, 0.5], [1.0, 0.0]]


def test_positions_of_packed_rows_are_those_of_trl():
    lengths = [[3, 1], [2, 2, 1], [4]]
    ours = DataCollatorForLanguageModeling.get_position_ids_from_packed_seq_lengths(lengths)
    theirs = Theirs.get_position_ids_from_packed_seq_lengths(lengths)
    assert [one.tolist() for one in ours] == [one.tolist() for one in theirs]


def test_a_trainer_of_transformers_takes_it(tmp_path, llama):
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to="none", save_strategy="no")
    trainer = Trainer(llama, args, DataCollatorForLanguageModeling(0), PLAIN)
    assert trainer.train().training_loss > 0


@pytest.mark.parametrize("free", [False, True])
def test_with_packed_rows_sfttrainer_learns_what_it_learns_with_its_own_collator(tmp_path, tokenizer, free):
    rows = Dataset.from_list([{"text": f"say hello {i}"} for i in range(12)])

    def first_loss(collator):
        args = SFTConfig(
            str(tmp_path), max_steps=1, logging_steps=1, use_cpu=True, save_strategy="no", packing=True, max_length=48,
            dataset_cache=False, per_device_train_batch_size=2,
        )  # fmt: skip
        trainer = SFTTrainer(make_llama(tokenizer), args, collator, rows, processing_class=tokenizer)
        trainer.train()
        return trainer.state.log_history[0]["loss"]

    assert first_loss(DataCollatorForLanguageModeling(0, free)) == pytest.approx(first_loss(None), abs=1e-6)


def test_other_tensors_than_torchs_are_refused():
    with pytest.raises(OptionTypeError, match='return_tensors must be "pt", got "np"'):
        DataCollatorForLanguageModeling(0, return_tensors="np")(PLAIN)
