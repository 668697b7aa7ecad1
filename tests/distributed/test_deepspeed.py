"""DeepSpeed's ZeRO-2 and ZeRO-3 on CPUs: the curve of one process, whole models, and runs that go on."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sftcore import SFTConfig
from sftcore.core.errors import ConflictError
from tests.distributed import deepspeed_runs, ranked_runs
from tests.distributed.deepspeed_runs import CASES, STOPPED
from tests.distributed.ranked_runs import EVALUATED, ROWS, curve, differing_weights, read

pytestmark = pytest.mark.skipif(
    find_spec("deepspeed") is None,
    reason="needs DeepSpeed: pip install deepspeed ninja, and a C++ compiler for its operations",
)


@pytest.fixture(scope="module")
def both(tmp_path_factory, model_folder) -> Path:
    """What two processes wrote, and two new ones that went on with those that were stopped."""
    folder = tmp_path_factory.mktemp("deepspeed") / "both"
    for cases in ([*CASES, *(f"{case}-stopped" for case in STOPPED)], [f"{case}-auto" for case in STOPPED]):
        ranked_runs.start(folder, model_folder, *cases, script=deepspeed_runs.__file__)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory, model_folder) -> Path:
    """What one process writes without DeepSpeed."""
    folder = tmp_path_factory.mktemp("alone")
    for case in CASES:
        if case.startswith("zero3"):
            ranked_runs.run(case, str(model_folder), folder)
    return folder


def test_a_process_that_no_launcher_has_started_is_told_to_use_one(tmp_path):
    with pytest.raises(ConflictError, match="DeepSpeed needs a launcher to start its processes"):
        SFTConfig(str(tmp_path), use_cpu=True, deepspeed={"zero_optimization": {"stage": 2}})


@pytest.mark.parametrize("case", CASES)
def test_deepspeed_logs_the_curve_of_one_process(both, alone, case):
    one, two = curve(alone, case.replace("zero2", "zero3")), curve(both, case)
    assert len(one) == len(two) > 1
    for mine, theirs in zip(two, one, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_step_with_nan_is_left_out(both, stage):
    with_nan, without = ([one["step"] for one in curve(both, f"zero{stage}{name}")] for name in ("-skip", ""))
    assert [step for step in without if without.count(step) > with_nan.count(step)] == [2]


@pytest.mark.parametrize("case", CASES)
def test_every_row_is_seen_once_in_an_epoch(both, case):
    found = [read(both, case, rank)["seen"] for rank in (0, 1)]
    for mode, first, count in (("train", 0, ROWS), ("eval", 100, EVALUATED)):
        assert sorted(found[0][mode] + found[1][mode]) == sorted([*range(first, first + count)] * 2)


@pytest.mark.parametrize("case", CASES)
def test_the_model_is_saved_whole(both, alone, case):
    reference = case.replace("zero2", "zero3")
    [name] = [path.name for path in (both / case).glob("*model.safetensors")]
    wanted, found = load_file(alone / reference / name), load_file(both / case / name)
    assert found.keys() == wanted.keys()
    for key, weight in wanted.items():
        torch.testing.assert_close(found[key], weight, rtol=1e-4, atol=1e-4, msg=key)
    if "lora" not in case:
        assert AutoModelForCausalLM.from_pretrained(both / case).num_parameters() > 0
    assert not list((both / case).glob("global_step*"))  # DeepSpeed's own checkpoints are no part of a model


@pytest.mark.parametrize("case", STOPPED)
def test_a_run_that_a_signal_stopped_goes_on_to_the_same_weights_and_curve(both, case):
    assert len(read(both, f"{case}-auto")["seen"]["train"]) < ROWS
    assert curve(both, f"{case}-auto") == curve(both, case)
    assert not differing_weights(both, case, f"{case}-auto")
