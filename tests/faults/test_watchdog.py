"""`loss_watchdog_threshold`: a run whose loss stays above a level stops with a checkpoint, and says so."""

from __future__ import annotations

import pytest
from datasets import Dataset

from sftcore import SFTConfig, SFTCoreError, SFTTrainer
from tests.conftest import make_llama, make_tokenizer

ROWS = Dataset.from_list([{"text": f"hello {i} world"} for i in range(8)])


def trainer_of(folder, **fields):
    """The loss of a model with random weights is near ln(400), which is 6.0."""
    tokenizer = make_tokenizer()
    defaults = {"use_cpu": True, "max_steps": 8, "per_device_train_batch_size": 1, "save_strategy": "steps",
                "save_steps": 100, "learning_rate": 0.0, "report_to": "none", "logging_steps": 100}  # fmt: skip
    args = SFTConfig(str(folder), **{**defaults, **fields})
    return SFTTrainer(make_llama(tokenizer), args, train_dataset=ROWS, processing_class=tokenizer)


def saved(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize(("patience", "step"), [(None, 3), (2, 2), (1, 1)])
def test_a_loss_that_stays_above_stops_the_run_with_a_checkpoint(tmp_path, patience, step):
    trainer = trainer_of(tmp_path, loss_watchdog_threshold=3.0, loss_watchdog_patience=patience)
    with pytest.warns(UserWarning, match=f"step {step}: stopped, because the loss was above 3 in {step} steps"):
        trainer.train()
    assert trainer.state.global_step == step
    assert saved(tmp_path) == [f"checkpoint-{step}"]


def test_a_loss_below_is_left_alone_and_one_good_step_gives_all_patience_back(tmp_path):
    trainer = trainer_of(tmp_path, loss_watchdog_threshold=9.0)
    trainer.train()
    assert trainer.state.global_step == 8
    learning = trainer_of(tmp_path / "learning", loss_watchdog_threshold=5.5, loss_watchdog_patience=4,
                          learning_rate=1e-2)  # fmt: skip
    learning.train()
    assert learning.state.global_step == 8
    assert not learning.guard.watchdog.tripped


def test_accumulated_batches_are_one_step(tmp_path):
    trainer = trainer_of(tmp_path, loss_watchdog_threshold=7.0, gradient_accumulation_steps=2, max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3


def test_a_run_that_goes_on_has_all_its_patience_again(tmp_path):
    with pytest.warns(UserWarning, match="step 3: stopped"):
        trainer_of(tmp_path, loss_watchdog_threshold=3.0).train()
    again = trainer_of(tmp_path, loss_watchdog_threshold=3.0, loss_watchdog_patience=3)
    with pytest.warns(UserWarning, match="step 6: stopped"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.global_step == 6


def test_steps_before_a_checkpoint_count(tmp_path):
    trainer_of(tmp_path, loss_watchdog_threshold=3.0, loss_watchdog_patience=5, save_steps=2, max_steps=2).train()
    again = trainer_of(tmp_path, loss_watchdog_threshold=3.0, loss_watchdog_patience=5)
    with pytest.warns(UserWarning, match="step 5: stopped"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_without_checkpoints_it_is_said(tmp_path):
    trainer = trainer_of(tmp_path, loss_watchdog_threshold=3.0, save_strategy="no")
    with pytest.warns(UserWarning, match='no checkpoint: save_strategy is "no"'):
        trainer.train()
    assert saved(tmp_path) == []


def test_patience_without_a_level_is_said_and_numbers_have_ranges(tmp_path):
    with pytest.warns(UserWarning, match="loss_watchdog_patience does nothing without loss_watchdog_threshold"):
        trainer_of(tmp_path, loss_watchdog_patience=2)
    for fields in ({"loss_watchdog_threshold": 0}, {"loss_watchdog_threshold": 1.0, "loss_watchdog_patience": 0}):
        with pytest.raises(SFTCoreError, match="loss_watchdog_"):
            SFTConfig(str(tmp_path), **fields)
