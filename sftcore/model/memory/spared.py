"""What every run does to hold less memory, because it changes no bit of the result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sftcore.model.memory.heap import holes_returned
from sftcore.model.memory.made_again import keeping_less
from sftcore.model.unwrap import causal_model

if TYPE_CHECKING:
    import torch

    from sftcore.core.types import Plan


@contextmanager
def spared_memory(model: Any, plan: Plan, device: torch.device) -> Iterator[None]:
    """Inside, layers keep less for the backward pass, and on a CPU the heap's holes go back to the system.

    Layers stay as they are where somebody else decides what is kept or computed: gradient checkpointing, offloading of
    activations, kernels, torch.compile.
    """
    causal, settings = causal_model(model), plan.settings
    others = ("gradient_checkpointing", "activation_offloading", "torch_compile")
    decided = any(settings.get(name) for name in others) or bool(plan.selected("kernel"))
    with ExitStack() as stack:
        if not decided and not getattr(causal, "is_gradient_checkpointing", False):
            stack.enter_context(keeping_less(causal))
        stack.enter_context(holes_returned(causal, device))
        yield
