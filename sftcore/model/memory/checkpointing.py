"""Selective gradient checkpointing: the backward pass recomputes a layer except for its expensive operations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sftcore.config.checks import CHECKPOINTING_FIELDS, KEPT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MATMULS = ("mm", "addmm", "bmm", "baddbmm", "linear", "_scaled_mm")


def take_selective(args: Any) -> str | None:
    """Remove and return what the run keeps: transformers passes the other arguments to torch, which has no `selective`.

    None if checkpointing is not selective.
    """
    found = None
    for field in CHECKPOINTING_FIELDS:
        options = getattr(args, field, None)
        if isinstance(options, Mapping) and "selective" in options:
            found = options["selective"] or found
            setattr(args, field, {key: value for key, value in options.items() if key != "selective"} or None)
    return KEPT[0] if found is True else found or None


def checkpoint_selectively(model: PreTrainedModel, kept: str) -> None:
    """Keep the results of attention, or also of "matmul", whenever checkpointing is enabled for this model.

    The policy is not an argument of the run, because arguments are saved and shown, and functions cannot be.
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
    """Whether the operation's name is one of attention, so that the kernels of all libraries are recognised."""
    name = str(op)
    return ("attention" in name or "attn" in name) and "backward" not in name
