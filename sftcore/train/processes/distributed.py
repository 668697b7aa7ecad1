"""What is refused or set before several processes train one model together."""

from __future__ import annotations

import atexit
import functools
import time
from typing import Any

from sftcore.core.errors import ConflictError

_LETTING_GO = 0.25
"""Seconds, of which a thread that has the interpreter needs less than a thousandth."""


def prepare_processes(args: Any, model: Any) -> None:
    """Before transformers' Trainer is made: what DDP looks for, who reads a stream, and sharding without processes.

    Raises:
        ConflictError: `fsdp` is set for a single process.
    """
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = may_leave_some_unused(model)
    if args.accelerator_config.dispatch_batches is None:
        # each process reads its own rows of a stream, which may come later too, in evaluate and predict
        args.accelerator_config.dispatch_batches = False
    if args.fsdp and args.world_size == 1:
        raise nothing_sharded(args)
    if args.world_size > 1:
        _end_after_gloo()


@functools.cache
def _end_after_gloo() -> None:
    """Have Python wait at its end until gloo's threads have let go of the tensors of the last collective, once.

    A thread does so after the collective's wait has returned, and needs the interpreter for it. Where that ends in the
    meantime, the process is aborted ("terminate called without an active exception"), although all it had to do is
    done: https://github.com/pytorch/pytorch/pull/179291
    """
    atexit.register(time.sleep, _LETTING_GO)


def may_leave_some_unused(model: Any) -> bool:
    """Whether a batch may leave parameters that train without a gradient, which DDP must then look for at each step."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    if any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return True
    if getattr(config, "vision_config", None) is None:
        return False
    # a batch without images does not ask the vision tower
    return any("vision" in name or "visual" in name for name, one in model.named_parameters() if one.requires_grad)


def nothing_sharded(args: Any) -> ConflictError:
    """The error where `fsdp` would shard nothing."""
    return ConflictError(
        f"fsdp is set, and nothing would be sharded among {args.world_size} process(es) on {args.device.type}: "
        "accelerate shards among several, on GPUs.",
        where="SFTConfig",
        fix="Start one for each GPU (sftcore train --nproc, accelerate launch), or drop fsdp.",
    )


def not_sharded_yet() -> ConflictError:
    """The error where a model is to be evaluated before FSDP 2 has sharded it."""
    return ConflictError(
        "FSDP 2 shards a model together with its optimizer, so it cannot be evaluated before it is trained.",
        where="evaluate",
        fix="Call train first; eval_on_start: true evaluates before the first step.",
    )


def is_taken_apart(engine: Any) -> bool:
    """Whether DeepSpeed runs the model, and each process has a part of it (ZeRO-3)."""
    return hasattr(engine, "zero_optimization_partition_weights") and bool(engine.zero_optimization_partition_weights())
