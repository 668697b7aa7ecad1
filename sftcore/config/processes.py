"""Checks what can be known of a run's processes before torch is imported, and starts DeepSpeed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

from sftcore.core.errors import ConflictError
from sftcore.core.types import Plan, Problem

SPLIT_SEQUENCES = {"cp_size": "context", "sp_size": "sequence"}
"""Sizes in accelerate's ParallelismConfig that split rows among processes."""


def world_size() -> int:
    """How many processes a launcher has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def uses_deepspeed(settings: Mapping[str, Any]) -> bool:
    """Whether the run or its launcher has chosen DeepSpeed."""
    return bool(settings.get("deepspeed")) or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def uses_fsdp(settings: Mapping[str, Any]) -> bool:
    """Whether the run or its launcher has chosen FSDP."""
    return bool(settings.get("fsdp")) or os.environ.get("ACCELERATE_USE_FSDP") == "true"


def process_problems(plan: Plan) -> Iterator[Problem]:
    """Problems with launchers and kinds of parallelism that this run cannot use."""
    settings = plan.settings
    if uses_deepspeed(settings):
        yield from _without_deepspeed()
        if settings.get("on_nonfinite") == "continue":
            yield Problem(
                "DeepSpeed itself skips a step whose gradients are NaN or Inf.",
                "on_nonfinite",
                "Use skip, or stop.",
            )
    yield from _unkept_order(settings.get("accelerator_config"))
    yield from _split_sequences(settings.get("parallelism_config"))
    if plan.model.init_kwargs.get("tp_plan") and plan.selected("adapter"):
        yield Problem(
            "tensor parallelism splits the weights that the adapter wraps.",
            "model_init_kwargs",
            "Drop tp_plan, and shard by FSDP (fsdp: true), or train without an adapter.",
        )


def _unkept_order(config: Any) -> Iterator[Problem]:
    name = "use_seedable_sampler"
    seedable = config.get(name, True) if isinstance(config, Mapping) else getattr(config, name, True)
    if world_size() > 1 and not seedable:
        yield Problem(
            "without the seedable sampler, several processes shuffle the rows with random states that no checkpoint "
            "keeps, so a resumed run would see other rows.",
            "accelerator_config",
            f"Drop {name}: false.",
        )


def _split_sequences(config: Any) -> Iterator[Problem]:
    for size, name in SPLIT_SEQUENCES.items():
        if getattr(config, size, 1) > 1 or int(os.environ.get(f"PARALLELISM_CONFIG_{size.upper()}", "1")) > 1:
            yield Problem(
                f"{name} parallelism splits rows among processes, but the loss and the documents of packed rows need "
                "whole rows.",
                "parallelism_config",
                f"Drop {size}; FSDP (fsdp: true) and activation checkpointing save memory too.",
            )


def _without_deepspeed() -> Iterator[Problem]:
    try:
        importlib.metadata.distribution("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        yield Problem(
            "deepspeed is not installed.",
            "deepspeed",
            "Install it (pip install deepspeed), or shard by FSDP: fsdp: true.",
        )


def refuse_missing_deepspeed(config: Any) -> None:
    """Like `process_problems`, for a configuration that transformers reads before there is a plan.

    Raises:
        ConflictError: DeepSpeed is configured but not installed.
    """
    for problem in _without_deepspeed() if config else ():
        raise ConflictError(problem.what, where="SFTConfig: deepspeed", fix=problem.fix)


def start_deepspeed(args: Any) -> None:
    """Start DeepSpeed's communication on CPUs, where accelerate does not; ZeRO-3 needs it to load a model.

    Args:
        args: transformers' TrainingArguments.

    Raises:
        ConflictError: no launcher has started this process.
    """
    if not args.deepspeed:
        return
    if "RANK" not in os.environ and importlib.util.find_spec("mpi4py") is None:
        raise ConflictError(
            "DeepSpeed needs a launcher to start its processes, even a single one.",
            where="SFTConfig: deepspeed",
            fix="Start several with sftcore train --nproc, one with torchrun --nproc-per-node 1, or drop deepspeed.",
        )
    if args.device.type == "cpu":
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo", verbose=False)


def tensor_parallel_size(init_kwargs: Mapping[str, Any] | str | None, processes: int) -> int:
    """How many processes share one copy of a model that is loaded with these arguments of `from_pretrained`."""
    if not isinstance(init_kwargs, Mapping) or not init_kwargs.get("tp_plan"):
        return 1
    return int(init_kwargs.get("tp_size") or processes)
