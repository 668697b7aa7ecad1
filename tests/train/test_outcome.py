"""The closing line of a run says what this run did, not what the runs before it had done."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from sftcore.config.recipe import load_recipe
from sftcore.train.run import check_recipe, run_recipe


@pytest.fixture
def trained(tmp_path, model_folder, write):
    write("rows.jsonl", "".join(json.dumps({"text": f"hello {i}"}) + "\n" for i in range(8)))

    def train(**changed):
        recipe = {
            "model": str(model_folder), "data": str(tmp_path / "rows.jsonl"), "output_dir": str(tmp_path / "out"),
            "max_steps": 4, "save_steps": 4, "logging_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True,
            "report_to": "none", **changed,
        }  # fmt: skip
        path = write("recipe.yaml", json.dumps(recipe))
        return run_recipe(check_recipe(load_recipe(path)), Console(quiet=True))

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
