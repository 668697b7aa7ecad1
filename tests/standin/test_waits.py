"""The host waits for the device once in an optimizer step, however many micro-batches, layers or documents it has."""

from __future__ import annotations

import pytest

from sftcore.testing.standin.process import on_cpu, on_standin

pytestmark = pytest.mark.slow

VARLEN = {"plugins": {"attention": "varlen"}}
RUNS = {
    "padded": {"padding_free": False},
    "padding-free": {"padding_free": True, "max_length": None, **VARLEN},
    "packed": {"packing": True, **VARLEN},
    "packed, sdpa, dft": {"packing": True, "loss_type": "dft", "plugins": {"attention": "sdpa"}},
    "NEFTune": {"neftune_noise_alpha": 5.0, "padding_free": False},
    "NEFTune, packed": {"neftune_noise_alpha": 5.0, "packing": True, **VARLEN},
    "LoRA": {"lora": True, "padding_free": False},
    "gradient checkpointing": {"gradient_checkpointing": True, "padding_free": False},
    "four micro-batches, six layers": {
        "gradient_accumulation_steps": 4,
        "model": {"num_hidden_layers": 6},
        "packing": True,
        **VARLEN,
    },
}


@pytest.fixture(scope="module")
def found():
    return dict(zip(RUNS, on_standin("tests.standin.steps:waits_of_steps", list(RUNS.values())), strict=True))


@pytest.mark.parametrize("run", RUNS)
def test_one_wait_in_an_optimizer_step_and_none_in_a_micro_batch(found, run):
    assert found[run].get("steps") == [1, 1, 1], found[run]
    assert all("guard/steps.py" in place for place in found[run]["where"])


def test_the_first_steps_are_counted_too(found):
    assert all(one["total"] > sum(one["steps"]) for one in found.values())


def test_a_run_that_waits_less_trains_the_same(found):
    names = ["padded", "padding-free", "packed", "LoRA"]
    wanted = on_cpu("tests.standin.steps:waits_of_steps", [RUNS[name] for name in names])
    assert [found[name]["loss"] for name in names] == pytest.approx([one["loss"] for one in wanted], abs=1e-4)
