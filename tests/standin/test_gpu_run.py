"""`python benchmarks/gpu.py` comes to its end on the stand-in, and says what ran and what did not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("torch", minversion="2.10")
ROOT = Path(__file__).parents[2]


def run(*words, **variables):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *words]
    return subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What it printed, and what it wrote."""
    file = tmp_path_factory.mktemp("gpu") / "found.json"
    process = run("--standin", "--json", str(file), "--seconds", "3600")
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout, json.loads(file.read_text())


def states(found):
    return {name: one["state"] for part in found["parts"].values() for name, one in part.items()}


def test_all_parts_run_to_their_end(done):
    _, found = done
    assert [*found["parts"]] == ["correctness", "choices", "sftcore tiny", "trl tiny"]
    assert set(states(found).values()) == {"done", "not run"}
    assert {name for name, state in states(found).items() if state == "done"} >= {
        "attention varlen, autocast, padding-free", "no waits in a step, LoRA, packed", "activation offloading",
        "evaluation and generation", "gradients, varlen, Gemma3, float32, packed", "attention varlen", "chunk 256",
        "default", "best",
    }  # fmt: skip


def test_what_needs_a_gpu_is_named_with_the_reason(done):
    printed, found = done
    assert found["parts"]["correctness"]["NF4"] == {
        "state": "not run", "error": "no GPU for an NF4 base", "seconds": 0.0,
    }  # fmt: skip
    assert "NF4: NOT RUN: no GPU for an NF4 base" in printed


def test_no_speed_and_no_memory_is_claimed(done):
    printed, found = done
    runs = [one for name in ("default", "best") for one in found["parts"]["sftcore tiny"][name]["result"]]
    assert [one["batch"] for one in runs] == [1, 2, 1, 2]
    assert {one[key] for one in runs for key in ("tokens_per_second", "model_tflops", "peak_mib")} == {None}
    assert "tokens/s" not in printed
    assert "This was the stand-in" in printed


def test_both_libraries_train_the_same_tokens_to_the_same_losses(done):
    _, found = done
    ours, theirs = (found["parts"][f"{one} tiny"] for one in ("sftcore", "trl"))
    if theirs["trl"]["state"] == "not run":
        pytest.skip(theirs["trl"]["error"])  # such as: Triton is installed, and there is no GPU for TRL's kernel
    for one, same in zip(ours["default"]["result"], theirs["trl"]["result"], strict=True):
        assert one["tokens"] == same["tokens"]
        assert one["losses"] == pytest.approx(same["losses"], rel=0.01)
        assert len(one["losses"]) == 4


def test_a_machine_without_a_gpu_is_told_so(tmp_path):
    process = run("--json", str(tmp_path / "found.json"), PATH="")
    assert process.returncode == 1
    assert "nvidia-smi shows no GPU" in process.stderr
