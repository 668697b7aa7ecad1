"""Two processes, each with half of the rows, take the step of one process with all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.losses import two_processes

pytestmark = pytest.mark.slow

FIELDS = {
    "max_steps": 2, "logging_steps": 1, "learning_rate": 0.05, "optim": "sgd", "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant", "save_strategy": "no", "gradient_checkpointing": True, "report_to": "none",
}  # fmt: skip


LOSSES = {loss: {**FIELDS, "loss_type": loss, "gradient_accumulation_steps": 2} for loss in ("nll", "dft")}


@pytest.fixture(scope="module")
def both(tmp_path_factory, model_folder) -> Path:
    """The folder in which two processes have left the runs with each loss."""
    folder = tmp_path_factory.mktemp("two")
    fields = {loss: {"per_device_train_batch_size": 2, **fields} for loss, fields in LOSSES.items()}
    shown = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         two_processes.__file__, str(model_folder), str(folder), json.dumps(fields)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr[-3000:]
    return folder


def left_by(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The weights after two steps, and what was logged at each."""
    state = json.loads((folder / "trainer_state.json").read_text())
    return load_file(folder / "model.safetensors"), [one for one in state["log_history"] if "loss" in one]


@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_take_the_step_of_one_with_accumulation(tmp_path, model_folder, both, loss):
    two_processes.run(str(model_folder), tmp_path, {"per_device_train_batch_size": 4, **LOSSES[loss]})
    alone, logged_alone = left_by(tmp_path)
    shared, logged_both = left_by(both / loss)
    assert len(logged_alone) == len(logged_both) == 2
    for name, weight in alone.items():
        torch.testing.assert_close(shared[name], weight, rtol=1e-4, atol=1e-6, msg=name)
    for one, other in zip(logged_alone, logged_both, strict=True):
        for key in ("loss", "entropy", "mean_token_accuracy", "num_tokens", "num_supervised_tokens"):
            assert other[key] == pytest.approx(one[key], rel=1e-4), key


@pytest.fixture(scope="module")
def sharded():
    """What two processes print that share a model by FSDP2."""
    script = Path(__file__).with_name("sharded.py")
    shown = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr[-3000:]
    return json.loads(shown.stdout.strip().splitlines()[-1])


def test_gradients_under_fsdp_are_those_of_one_process(sharded):
    found = sharded["gaps"]
    assert [one["count"] for one in found.values()] == [21, 4, 21, 4]
    # a head that is sharded by itself is recomputed in the backward pass; one of the root is there while it runs
    assert [one["calls"] for one in found.values()] == [[0, 8, 8, 7]] * 2 + [[8, 8, 7, 7, 8, 8]] * 2
    assert max(one["gap"] for one in found.values()) < 1e-5, found


@pytest.mark.parametrize("kind", ["by_fsdp1", "by_fsdp2"])
def test_fsdp_in_bfloat16_rounds_neither_normaliser_nor_weights_nor_loss(sharded, kind):
    """257 is not a bfloat16, and what FSDP casts among the arguments of a forward becomes 256."""
    found = sharded["arrived"][kind]
    assert found["head"] == "torch.bfloat16"
    assert (found["items"], found["beside"]) == (257.0, 256.0)
    assert found["weights"]
    assert found["rounded"]  # the loss is one that bfloat16 would have changed
    assert found["loss"]
    assert found["trains"]
