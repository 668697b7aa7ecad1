"""What does not go with steps that are taken within the backward pass: all that needs every gradient at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sftcore.config.processes import uses_deepspeed, uses_fsdp, world_size
from sftcore.core.types import Problem

_OWN_STEPS = ("_layerwise", "lomo", "schedule_free")
"""What is part of the names of optimizers that step in a way of their own."""


def in_backward_problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """A problem for each setting that needs the gradients of the whole step."""
    if not settings.get("optimizer_in_backward"):
        return
    for what, fix in _excluded(settings):
        yield Problem(f"optimizer_in_backward drops each gradient when its weight has stepped: {what}.", fix=fix)


def _excluded(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    steps, norm = settings.get("gradient_accumulation_steps"), settings.get("max_grad_norm", 1.0)
    if steps is not None and steps > 1:
        yield f"{steps} gradients cannot be accumulated", "Set gradient_accumulation_steps: 1, and a larger batch."
    if norm is None or norm > 0:
        yield "max_grad_norm needs the norm of all of them", "Set max_grad_norm: 0."
    if settings.get("on_nonfinite", "stop") != "continue":
        yield (
            f"on_nonfinite: {settings.get('on_nonfinite', 'stop')} looks at all of them before a weight changes",
            "Set on_nonfinite: continue.",
        )
    if settings.get("master_weights"):
        yield "float32 master copies are stepped on all at once", "Drop master_weights."
    if settings.get("fp16"):
        yield "fp16's scaler looks at all of them", "Set bf16: true, or neither."
    name = str(getattr(settings.get("optim"), "value", settings.get("optim") or ""))
    if any(part in name for part in _OWN_STEPS):
        yield f'optim "{name}" steps in its own way', "Use another, such as adamw_torch."
    if uses_fsdp(settings) or uses_deepspeed(settings) or world_size() > 1:
        yield "several processes add theirs before they step", "Train in one process, or shard by FSDP instead."
    checkpointing = settings.get("gradient_checkpointing_kwargs")
    if isinstance(checkpointing, Mapping) and checkpointing.get("use_reentrant"):
        yield "reentrant checkpointing completes some of them twice", "Drop use_reentrant: true."
