"""The closing line of a run says what this run did, not what the runs before it had done."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from rich.console import Console
from transformers import TrainerCallback

from sftcore import ConflictError
from sftcore.config.recipe import load_recipe
from sftcore.train.run import check_recipe, run_recipe


@pytest.fixture
def trained(tmp_path, model_folder, write):
    write("rows.jsonl", "".join(json.dumps({"text": f"hello {i}"}) + "\n" for i in range(8)))

    def train(before_training=None, **changed):
        recipe = {
            "model": str(model_folder), "data": str(tmp_path / "rows.jsonl"), "output_dir": str(tmp_path / "out"),
            "max_steps": 4, "save_steps": 4, "logging_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True,
            "report_to": "none", **changed,
        }  # fmt: skip
        path = write("recipe.yaml", json.dumps(recipe))
        return run_recipe(check_recipe(load_recipe(path)), Console(quiet=True), before_training=before_training)

    return train


def losses_in(folder):
    entries = map(json.loads, (folder / "out" / "metrics.jsonl").read_text().splitlines())
    return [f"{entry['loss']:.4f}" for entry in entries if "loss" in entry]


def test_a_resumed_run_tells_its_own_steps_and_losses(tmp_path, trained):
    sentence = trained().sentence
    losses = losses_in(tmp_path)
    assert sentence.startswith(f"loss {losses[0]} to {losses[3]} in ")
    sentence = trained(max_steps=6, resume_from_checkpoint="last").sentence
    losses = losses_in(tmp_path)
    assert sentence.startswith(f"steps 5 to 6: loss {losses[4]} to {losses[5]} in ")


def test_a_resumed_run_that_logged_nothing_takes_no_loss_from_before(trained):
    trained()
    sentence = trained(max_steps=5, logging_steps=10, resume_from_checkpoint="last").sentence
    assert sentence.startswith("steps 5 to 5: no loss was logged in ")


def test_a_short_run_tells_its_mean(tmp_path, trained):
    outcome = trained(max_steps=1, logging_steps=10)
    assert outcome.sentence.startswith(f"loss {outcome.losses[0]:.4f} in ")
    assert losses_in(tmp_path) == []


def test_a_run_that_is_refused_leaves_no_empty_folder(tmp_path, model_folder, trained, write):
    (tmp_path / "empty").mkdir()
    kept = tmp_path / "runs" / "kept"
    kept.mkdir(parents=True)
    for folder in ("runs/new/one", "empty", "runs/kept"):
        with pytest.raises(ConflictError, match="steps"):
            trained(output_dir=str(tmp_path / folder), max_steps=4, before_training=refuse)
    assert sorted(one.name for one in tmp_path.rglob("*") if one.is_dir()) == ["empty", "kept", "runs"]


def refuse(trainer):
    """As a plugin may, when model and data are there."""
    assert trainer.args.output_dir
    raise ConflictError("no steps today.")


class Passes(TrainerCallback):
    """Two seconds pass in each step, and many before and behind it."""

    def __init__(self, clock):
        self.clock = clock

    def on_step_begin(self, args, state, control, **_):
        self.clock.now += 2.0

    def on_evaluate(self, args, state, control, **_):
        self.clock.now += 100.0

    def on_train_end(self, args, state, control, **_):
        self.clock.now += 1000.0


def test_the_seconds_are_those_of_the_steps(tmp_path, trained, monkeypatch):
    clock = SimpleNamespace(now=5.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("sftcore.train.reporting.clock.time", clock)

    def try_plugins(trainer):
        clock.now += 10_000.0

    monkeypatch.setattr("sftcore.train.construction.try_plugins", try_plugins)

    def pass_time(trainer):
        trainer.callback_handler.callbacks.insert(0, Passes(clock))

    data = {"path": str(tmp_path / "rows.jsonl"), "eval_rows": 2}
    outcome = trained(pass_time, eval_strategy="steps", eval_steps=2, data=data)
    assert outcome.seconds == 4 * 2.0
    assert " in 8.0 s of training; saved in " in outcome.sentence


class Stops(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == 2


def test_a_run_that_ends_early_says_so(tmp_path, trained):
    sentence = trained(lambda trainer: trainer.add_callback(Stops())).sentence
    losses = losses_in(tmp_path)
    assert sentence.startswith(f"ended at step 2 of 4: loss {losses[0]} to {losses[1]} in ")


def test_the_best_model_is_named(tmp_path, trained):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    outcome = trained(**best, data={"path": str(tmp_path / "rows.jsonl"), "eval_rows": 2})
    step = outcome.trainer.state.best_global_step
    assert f"of training; the model of step {step}, the best, is saved in " in outcome.sentence
