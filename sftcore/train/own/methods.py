"""Methods of the trainer that a user's subclass writes anew, without calling those of transformers or of this project.

docs/how-to/subclass.md has the table of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sftcore.core.errors import ModelError


@contextmanager
def handed_on(
    trainer: Any, batches_drawn: Callable[[list[Any]], None], loss_computed: Callable[[torch.Tensor], None]
) -> Iterator[None]:
    """Around transformers' loop: the run sees batches and losses as the loop gets them, whosever method gives them.

    Args:
        trainer: whose `get_batch_samples` and `training_step` the loop calls.
        batches_drawn: called with the micro-batches of each step, before the first of them.
        loss_computed: called with the loss of each micro-batch, behind its backward pass.
    """
    before = {name: vars(trainer)[name] for name in ("get_batch_samples", "training_step") if name in vars(trainer)}
    own_batches, own_step = trainer.get_batch_samples, trainer.training_step

    def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
        found = own_batches(*args, **kwargs)
        batches_drawn(found[0])
        return found

    def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = _as_loss(own_step(*args, **kwargs), type(trainer).__name__)
        loss_computed(loss)
        return loss

    get_batch_samples.own, training_step.own = own_batches, own_step  # type: ignore[attr-defined]
    trainer.get_batch_samples, trainer.training_step = get_batch_samples, training_step
    try:
        yield
    finally:
        del trainer.get_batch_samples, trainer.training_step
        vars(trainer).update(before)


CALL_THE_MODEL = "compute_loss", "training_step", "prediction_step"
"""Methods that call the model, or have others call it, on a batch as `_prepare_inputs` gives it."""


def is_overridden(trainer: Any, own: type, *names: str) -> bool:
    """Whether a subclass, or the trainer itself, has another method of one of these names than `own`."""
    for name in names:
        method = getattr(trainer, name)
        method = getattr(method, "own", method)  # within `handed_on`
        if getattr(method, "__func__", method) is not getattr(own, name):
            return True
    return False


def _as_loss(found: Any, owner: str) -> torch.Tensor:
    """What a training step has returned, as a scalar without gradients.

    Raises:
        ModelError: it is something else.
    """
    if isinstance(found, torch.Tensor) and found.numel() == 1:
        return found.detach().reshape(())
    shape = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
    raise ModelError(
        f"training_step returned {shape}, not the loss of its batch, which is a scalar tensor.",
        where=f"{owner}.training_step",
        fix="Return loss.detach().",
    )
