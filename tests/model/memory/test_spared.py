"""Which runs have their layers keep less."""

from __future__ import annotations

import pytest
from datasets import Dataset

from sftcore import SFTConfig, SFTTrainer
from tests.conftest import alpaca_rows, make_llama


@pytest.mark.parametrize(("fields", "kept"), [({"gradient_checkpointing": False}, 2), ({}, 0)])
def test_a_run_that_checkpoints_decides_itself_what_its_mlps_keep(tmp_path, tokenizer, fields, kept):
    seen = []

    class Looking(SFTTrainer):
        def training_step(self, *args, **kwargs):
            seen.append(sum("forward" in vars(layer.mlp) for layer in self.model.model.layers))
            return super().training_step(*args, **kwargs)

    trainer = Looking(
        make_llama(tokenizer),
        SFTConfig(str(tmp_path), max_steps=1, use_cpu=True, report_to="none", save_strategy="no", **fields),
        train_dataset=Dataset.from_list(alpaca_rows(8)),
        processing_class=tokenizer,
    )
    trainer.train()
    assert seen == [kept]
    assert not any("forward" in vars(layer.mlp) for layer in trainer.model.model.layers)
