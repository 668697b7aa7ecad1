"""The change that `sftcore estimate --memory` names is the first that fits, in the order of what it costs."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sftcore.cli import cli
from sftcore.core.errors import SFTCoreError
from sftcore.testing.tiny import make_llama, make_tokenizer
from sftcore.tools.estimate.cheapest import cheapest_change
from sftcore.tools.estimate.estimate import Estimate
from sftcore.train.estimate.steps import Bytes

SETTINGS = {
    "gradient_checkpointing": False, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": 8, "optim": "adamw_torch",
}  # fmt: skip
SAVED = {
    "gradient_checkpointing": 300,
    "per_device_train_batch_size": 0,
    "optim": 150,
    "adapter": 500,
    "max_length": 50,
}


def takes(words):
    """1,000 bytes, less what each setting is said to save here; the micro-batch by its rows."""
    given = dict(word.split("=") for word in words)
    peak = 1000 - sum(SAVED.get(key, 0) for key in given) - 100 * (4 - int(given.get("per_device_train_batch_size", 4)))
    memory = Bytes(0, 0, 0, 0, 0, peak, 0)
    return Estimate("cpu", memory, (1, 1), 1024, "padded", "sdpa", 1, 1, 1)


def change(limit, *, refused=(), has_adapter=False, **settings):
    def estimated(words):
        if any(word.startswith(refused) for word in words if refused):
            raise SFTCoreError("it does not go together.")
        return takes(words)

    return cheapest_change(
        {**SETTINGS, **settings}, has_adapter=has_adapter, max_length=1024, limit=limit, estimated=estimated
    )


def test_the_cheapest_that_fits_alone_is_taken():
    assert change(700).change.words == ("gradient_checkpointing=true",)
    assert "a fifth slower" in change(700).change.cost
    words = change(850, gradient_checkpointing=True).change.words
    assert words[:2] == ("per_device_train_batch_size=2", "gradient_accumulation_steps=2")
    assert change(500).change.words == ("adapter=lora",)


def test_a_step_keeps_its_rows_whatever_is_taken_at_a_time():
    words = change(880, gradient_checkpointing=True, per_device_train_batch_size=3, gradient_accumulation_steps=4)
    given = dict(word.split("=") for word in words.change.words)
    assert int(given["per_device_train_batch_size"]) * int(given["gradient_accumulation_steps"]) == 12


def test_several_are_put_together_where_none_is_enough():
    found = change(450, has_adapter=True)
    assert found.fits
    assert {word.partition("=")[0] for word in found.change.words} >= {
        "gradient_checkpointing", "per_device_train_batch_size"
    }  # fmt: skip


def test_what_does_not_go_with_the_recipe_is_passed_over():
    assert change(700, refused=("gradient_checkpointing",)).change.words[0].startswith("per_device_train_batch_size")


def test_where_nothing_fits_the_smallest_is_named():
    found = change(-9999)
    assert not found.fits
    assert found.found.memory.peak == 0


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cheapest")
    tokenizer = make_tokenizer()
    make_llama(tokenizer, hidden_size=64, num_hidden_layers=6).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"text": "hello world " * 40}) for _ in range(8)))
    return f"model={folder}", f"data={folder / 'rows.jsonl'}", "gradient_checkpointing=false", "max_length=128"


def estimated(*words):
    result = CliRunner().invoke(cli, ["estimate", *words, "--json"], catch_exceptions=False)
    return result.exit_code, json.loads(result.stdout)


@pytest.mark.slow
def test_with_the_change_that_is_named_the_run_fits(words):
    code, plain = estimated(*words)
    assert code == 0
    assert plain["schema"] == 1
    limit = f"{plain['memory']['peak'] * 0.75 / 1024:.0f}KiB"
    code, found = estimated(*words, "--memory", limit)
    assert (code, found["fits"], found["change"]["fits"]) == (1, False, True)
    code, after = estimated(*words, *found["change"]["settings"], "--memory", limit)
    assert (code, after["fits"]) == (0, True)
    assert after["memory"]["peak"] == found["change"]["peak"]


@pytest.mark.slow
def test_the_lines_say_what_is_needed_and_what_a_change_costs(words):
    result = CliRunner().invoke(cli, ["estimate", *words, "--memory", "300KiB"], catch_exceptions=False)
    assert result.exit_code == 1
    for said in ("peak", "weights", "optimizer", "steps", "too much     for 300.0 KiB", "cost"):
        assert said in result.stdout


@pytest.mark.slow
def test_a_probe_gives_a_time(words):
    code, found = estimated(*words, "--probe")
    assert code == 0
    assert found["seconds"] > 0
