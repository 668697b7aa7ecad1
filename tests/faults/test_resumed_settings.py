"""What may differ when a run is resumed does differ, and a run that has no step left leaves its folder as it was."""

from __future__ import annotations

import pytest

from tests.faults import runs


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resumed(out, wanted="last", **fields):
    trainer = runs.trainer(out, **fields)
    result = trainer.train(resume_from_checkpoint=wanted)
    return trainer, result


@pytest.fixture
def half(tmp_path):
    """A run of two steps, of which one checkpoint is kept."""
    runs.trainer(tmp_path, max_steps=2).train()
    assert runs.checkpoints(tmp_path) == ["checkpoint-2"]
    return tmp_path


def test_changed_intervals_count(half):
    trainer, _ = resumed(half, max_steps=8, save_steps=3, logging_steps=4, eval_strategy="steps", eval_steps=2)
    logged = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [step for step in logged if step > 2] == [4, 8]
    assert evaluated == [4, 6, 8]
    assert runs.checkpoints(half) == ["checkpoint-2", "checkpoint-3", "checkpoint-6", "checkpoint-8"]


def test_the_evaluation_set_may_be_dropped_and_added(tmp_path):
    evaluated = {"eval_strategy": "steps", "eval_steps": 1}
    runs.trainer(tmp_path, max_steps=2, **evaluated).train()
    without, _ = resumed(tmp_path, max_steps=4)
    assert without.state.global_step == 4
    with_it, _ = resumed(tmp_path, max_steps=6, **evaluated)
    assert [entry["step"] for entry in with_it.state.log_history if "eval_loss" in entry] == [1, 2, 5, 6]


@pytest.mark.parametrize(("max_steps", "wanted"), [(6, "auto"), (6, "last"), (4, "last"), (2, "auto")])
def test_a_run_that_has_no_step_left_says_so_and_leaves_its_folder(tmp_path, capsys, max_steps, wanted):
    whole = runs.trainer(tmp_path)
    whole.train()
    whole.save_model()
    before = files_of(tmp_path)
    trainer, result = resumed(tmp_path, wanted, max_steps=max_steps)
    said = f"the checkpoint is at step 6, and the run has {max_steps}: nothing is left to train"
    assert trainer.nothing_left == said
    assert said in capsys.readouterr().err
    assert (result.global_step, result.metrics) == (6, {})
    assert files_of(tmp_path) == before


def test_epochs_that_are_over_are_no_steps_either(tmp_path):
    fields = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 8}
    runs.trainer(tmp_path, **fields).train()
    before = files_of(tmp_path)
    trainer, _ = resumed(tmp_path, **fields)
    assert "at step 3, and the run has 3" in trainer.nothing_left
    assert files_of(tmp_path) == before


def test_a_run_that_was_killed_behind_its_last_checkpoint_comes_to_its_end(tmp_path):
    runs.trainer(tmp_path).train()
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if "train_runtime" not in line))
    trainer, result = resumed(tmp_path)
    assert trainer.nothing_left == ""
    assert result.metrics["train_runtime"] >= 0
    assert "train_runtime" in log.read_text()


def test_a_trainer_that_had_nothing_to_do_may_train_on(tmp_path):
    runs.trainer(tmp_path).train()
    trainer, _ = resumed(tmp_path)
    assert trainer.nothing_left
    trainer.args.max_steps = 8
    trainer.train(resume_from_checkpoint="last")
    assert trainer.nothing_left == ""
    assert trainer.state.global_step == 8
