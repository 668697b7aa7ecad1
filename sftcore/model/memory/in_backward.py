"""Steps each weight as soon as its gradient is there, so that no two gradients are held at once."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sftcore.core.errors import ConflictError

if TYPE_CHECKING:
    import torch


class InBackward:
    """Takes the steps of an optimizer within the backward pass: torch's hook that runs when a gradient is complete.

    Each weight has an optimizer of the same class for itself, which shares the state of the whole one and follows its
    groups, so that schedules, checkpoints and what reads the optimizer see what they always see. The whole one's own
    `step` does nothing any more. Only backward passes within `training` count: trials are others.

    Args:
        optimizer: of one process, over weights that are not sharded.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._whole = optimizer
        self._counts = False
        self._stepped = 0
        for number, group in enumerate(optimizer.param_groups):
            for weight in group["params"]:
                self._follow(weight, number)
        vars(optimizer)["step"] = types.MethodType(self._taken, optimizer)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Around the forward and backward pass of a step."""
        self._counts = True
        try:
            yield
        finally:
            self._counts = False

    def _follow(self, weight: torch.Tensor, number: int) -> None:
        own = object.__new__(type(self._whole))
        own.__dict__.update(vars(self._whole))

        def step(weight: torch.Tensor) -> None:
            if not self._counts:
                return
            # a checkpoint that is read puts other objects in their place
            own.state = self._whole.state
            own.param_groups = [{**self._whole.param_groups[number], "params": [weight]}]
            own.step()
            self._stepped += 1
            weight.grad = None

        weight.register_post_accumulate_grad_hook(step)

    def _taken(self, optimizer: torch.optim.Optimizer, closure: Any = None) -> None:
        """The step of the whole: all its weights have taken theirs.

        Raises:
            ConflictError: none has, because the backward pass was not ours.
        """
        if not self._stepped:
            raise ConflictError(
                "no weight has stepped in the backward pass: a training_step of your own makes its own.",
                where="optimizer_in_backward",
                fix="Call super().training_step there, or drop optimizer_in_backward.",
            )
        self._stepped = 0
