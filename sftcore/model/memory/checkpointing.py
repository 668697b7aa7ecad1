"""Selective gradient checkpointing: the backward pass recomputes a layer, but not what is dear to compute again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sftcore.core.errors import nearest
from sftcore.core.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEPT = ("attention", "matmul")
"""What `selective` may name: the results of attention, or those of attention and of every matrix multiplication."""

_FIELDS = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
_MATMULS = ("mm", "addmm", "bmm", "baddbmm", "linear", "_scaled_mm")


ON_CPU = "on a CPU activations are in host memory already, and there is nowhere to move them."


def memory_problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with `activation_offloading` and with `selective` in the run's settings."""
    if settings.get("activation_offloading") and settings.get("use_cpu"):
        yield Problem(ON_CPU, "activation_offloading", "Set activation_offloading: false.")
    if (selective := selective_of(settings)) is None:
        return
    where, known = 'gradient_checkpointing_kwargs: "selective"', ("true", *KEPT)
    if selective is not True and selective not in KEPT:
        close = nearest(str(selective), KEPT)
        yield Problem(f"{selective!r} is not known.{close}", where, fix=f"Use one of: {', '.join(known)}.")
    if any(one.get("use_reentrant") for one in _options(settings)):
        yield Problem("reentrant checkpointing recomputes all of a layer.", where, fix="Drop use_reentrant.")
    on = [settings.get(name) for name in ("activation_checkpointing", "gradient_checkpointing")]
    if next((value for value in on if value is not None), True) is False:
        yield Problem("gradient checkpointing is off.", where, fix="Set gradient_checkpointing: true, or drop it.")


def selective_of(settings: Mapping[str, Any]) -> Any:
    """What the run's settings give for `selective`; None where checkpointing is not selective."""
    return next((one["selective"] for one in _options(settings) if one.get("selective")), None)


def _options(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(settings[field]) for field in _FIELDS if isinstance(settings.get(field), Mapping)]


def take_selective(args: Any) -> str | None:
    """What the run keeps, taken out of its arguments: transformers hands the rest to torch, which knows no `selective`.

    None where checkpointing is not selective.
    """
    found = None
    for field in _FIELDS:
        options = getattr(args, field, None)
        if isinstance(options, Mapping) and "selective" in options:
            found = options["selective"] or found
            setattr(args, field, {key: value for key, value in options.items() if key != "selective"} or None)
    return KEPT[0] if found is True else found or None


def checkpoint_selectively(model: PreTrainedModel, kept: str) -> None:
    """Whenever checkpointing is turned on for this model, keep the results of attention, or of "matmul" too.

    The policy is no argument of the run, because arguments are saved and shown, and functions cannot be.
    """
    original: Callable[..., None] = model._set_gradient_checkpointing

    def set_checkpointing(
        enable: bool = True, gradient_checkpointing_func: Callable[..., Any] | None = None, **options: Any
    ) -> None:
        if gradient_checkpointing_func is not None:
            policy = functools.partial(_contexts, kept)
            options["gradient_checkpointing_func"] = functools.partial(gradient_checkpointing_func, context_fn=policy)
        original(enable=enable, **options)

    model._set_gradient_checkpointing = set_checkpointing


def _contexts(kept: str) -> Any:
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        keep = _is_attention(op) or (kept == "matmul" and _name(op) in _MATMULS)
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def _name(op: Any) -> str:
    return str(op).split(".")[1] if "." in str(op) else str(op)


def _is_attention(op: Any) -> bool:
    """By its name, so that kernels of torch, of flash-attn and of others are known alike."""
    name = str(op)
    return ("attention" in name or "attn" in name) and "backward" not in name
