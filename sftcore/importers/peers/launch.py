"""What stands around a training: variables of its script, its launcher's options, and accelerate's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sftcore.importers.draft import Draft
from sftcore.importers.peers.shared import field, fsdp
from sftcore.importers.read.source import ACCELERATE, ENVIRONMENT, LAUNCHER, Key, leaves

_OF_ACCELERATE = (
    "compute_environment",
    "machine_rank",
    "main_training_function",
    "num_machines",
    "rdzv_backend",
    "same_network",
    "tpu_env",
    "tpu_use_cluster",
    "tpu_use_sudo",
    "debug",
    "downcast_bf16",
    "gpu_ids",
    "main_process_port",
    "main_process_ip",
    "enable_cpu_affinity",
    "distributed_type",
    "use_cpu",
)


def environment(draft: Draft) -> None:
    """Variables of a script and the options of its launcher: how many processes, which tracker's project."""
    processes: list[Any] = []
    for name, value in draft.get(ENVIRONMENT, {}).items():
        key: Key = (ENVIRONMENT, name)
        if draft.knows(key):
            continue
        if name in ("NPROC_PER_NODE", "NUM_GPUS", "WORLD_SIZE") and str(value).isdigit():
            processes.append((int(value), key))
        elif name in ("WANDB_PROJECT", "SWANLAB_PROJ_NAME", "MLFLOW_EXPERIMENT_NAME", "COMET_PROJECT_NAME"):
            draft.put("tracker.project", value, key)
        elif name in ("WANDB_ENTITY", "WANDB_TEAM"):
            draft.put("tracker.entity", value, key)
        else:
            draft.left("a variable of the environment: set it where you train, if it is still needed", key)
    for name, value in draft.get(LAUNCHER, {}).items():
        key = (LAUNCHER, name)
        if name == "num_processes" and str(value).isdigit():
            processes.append((int(value), key))
        elif name == "config_file":
            draft.same("its lines are accounted for, if the file is there", key)
        else:
            draft.left("it belongs to the launcher: sftcore train has --nproc, and accelerate launch works too", key)
    accelerate(draft, processes)
    for number, key in processes:
        if number != processes[0][0] and key[0] == ACCELERATE:
            draft.same(f"the command's own number of processes goes first, {processes[0][0]}", key)
        elif number > 1:
            draft.left(
                f"start it with sftcore train --nproc {number}: the rows of a step are those of {number} processes", key
            )
        else:
            draft.same("one process", key)


def accelerate(draft: Draft, processes: list[Any]) -> None:
    """The file that `accelerate config` wrote."""
    given = draft.get(ACCELERATE, {})
    if not given:
        return
    under = (ACCELERATE,)
    if isinstance(number := given.get("num_processes"), int):
        processes.append((number, (*under, "num_processes")))
    precision = str(given.get("mixed_precision", "no")).lower()
    if precision in ("bf16", "fp16"):
        field(draft, precision, True, (*under, "mixed_precision"))
    elif given.get("mixed_precision") is not None:
        draft.same("what the script says", (*under, "mixed_precision"))
    if deep := given.get("deepspeed_config"):
        _deepspeed(draft, deep, (*under, "deepspeed_config"))
    if sharded := given.get("fsdp_config"):
        fsdp(draft, sharded, (*under, "fsdp_config"))
    if steps := given.get("gradient_accumulation_steps"):
        _from_accelerate(draft, "gradient_accumulation_steps", steps, (*under, "gradient_accumulation_steps"))
    for name in given:
        if not draft.knows((*under, name)) and name != "num_processes":
            why = "the launcher's own"
            draft.left(why, (*under, name)) if name not in _OF_ACCELERATE else draft.same(why, (*under, name))


def _deepspeed(draft: Draft, given: Mapping[str, Any], key: Key) -> None:
    if path := given.get("deepspeed_config_file"):
        field(draft, "deepspeed", path, (*key, "deepspeed_config_file"))
    else:
        stage = str(given.get("zero_stage", 2))
        offload = str(given.get("offload_optimizer_device", "none")).lower() not in ("none", "")
        name = {"3": "zero3", "2": "zero2", "1": "zero1"}.get(stage)
        if name is None:
            draft.left(f"there is no DeepSpeed configuration by name of stage {stage}: write a file", key)
            return
        field(draft, "deepspeed", f"{name}-offload" if offload and name != "zero1" else name, (*key, "zero_stage"))
        if offload and name == "zero1":
            draft.left("stage 1 with offloading has no name here: write a file", (*key, "offload_optimizer_device"))
    for name, ours in (
        ("gradient_accumulation_steps", "gradient_accumulation_steps"),
        ("gradient_clipping", "max_grad_norm"),
    ):
        if (value := given.get(name)) is not None and value != "auto":
            _from_accelerate(draft, ours, value, (*key, name))
    for name in given:
        if not draft.knows((*key, name)):
            draft.same("part of the configuration of that name", (*key, name))


def _from_accelerate(draft: Draft, ours: str, value: Any, key: Key) -> None:
    """A setting of the training that accelerate's file has too: the training's own goes first."""
    if ours in draft.entries or any(
        leaf[-1] == ours for leaf, _ in leaves(draft.source.values) if leaf[0] != ACCELERATE
    ):
        draft.left(f"the training's own {ours} goes first", key)
    else:
        draft.put(ours, value, key)
