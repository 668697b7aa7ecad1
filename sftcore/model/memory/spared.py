"""Whether a run's layers keep less for the backward pass, which changes no bit of the result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sftcore.model.memory.made_again import keeping_less
from sftcore.model.unwrap import causal_model

if TYPE_CHECKING:
    from sftcore.core.types import Plan

DECIDED_BY = ("gradient_checkpointing", "activation_offloading", "torch_compile")
"""Settings that decide themselves what layers keep."""


@contextmanager
def spared_memory(model: Any, plan: Plan) -> Iterator[None]:
    """Inside, layers keep less, unless somebody else decides what they keep or compute.

    These are gradient checkpointing, offloading of activations, kernels and torch.compile.
    """
    causal = causal_model(model)
    decided = any(plan.settings.get(name) for name in DECIDED_BY) or bool(plan.selected("kernel"))
    if decided or _is_checkpointed(causal):
        yield
        return
    with keeping_less(causal):
        yield


def _is_checkpointed(causal: Any) -> bool:
    """Whether the model's layers are checkpointed; newer transformers warn about the older name."""
    found = getattr(causal, "is_activation_checkpointing", None)
    return bool(getattr(causal, "is_gradient_checkpointing", False) if found is None else found)
