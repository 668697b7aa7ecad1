"""What one concern of a run does at the fixed moments of transformers' training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Part:
    """One concern of a run, such as the guard against NaN. The trainer calls every part, in a fixed order.

    A part has its own version of the methods that it needs; the others do nothing. No part knows the trainer, so that
    each can be tested without one.
    """

    def batches(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """The micro-batches of the next optimizer step have been drawn."""

    def after_backward(self, loss: torch.Tensor) -> None:
        """The gradients of one micro-batch are there; `loss` is its share of the step's loss, a scalar."""

    def before_optimizer(self, norm: torch.Tensor | float | None) -> None:
        """All gradients of the step are there and clipped; `norm` is their norm before clipping, if it was computed."""

    def around_save(self) -> AbstractContextManager[None]:
        """What holds while the model is being saved."""
        return nullcontext()

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold for the run to continue, as JSON takes it."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
