"""The loss of an evaluation over the supervised tokens of all processes, and metrics that it does not measure."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from sftcore.core.errors import ConflictError, nearest
from sftcore.core.types import IGNORED
from sftcore.train.parts.sums import widest_float

if TYPE_CHECKING:
    from accelerate import Accelerator


class EvaluationLoss:
    """Sums losses by their tokens, where transformers takes the mean of the batches' means."""

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None
        self.prefix = "eval"

    def begin(self, prefix: str) -> None:
        """Forget what was counted; the metrics of this evaluation begin with `prefix`, such as `eval_dev`."""
        self._sums, self._last, self.prefix = None, None, prefix

    def add(self, loss: torch.Tensor, num_items: torch.Tensor) -> None:
        """Count the loss of one batch, a scalar: the mean over `num_items`, a scalar, which may be 0."""
        self._add_last()
        self._last = loss, num_items

    def gave(self, loss: torch.Tensor, labels: torch.Tensor) -> None:
        """What `compute_loss` has given for a batch with these labels (B, T), where it may be the user's own.

        One that does not ask ours is a mean over rows, as transformers takes it; without any row it counts nothing.
        """
        rows = (labels != IGNORED).reshape(len(labels), -1).any(-1).sum() if self._last is None else self._last[1]
        self._last = loss, rows
        self._add_last()

    def _add_last(self) -> None:
        if self._last is None:
            return
        (loss, num_items), self._last = self._last, None
        dtype = widest_float(loss.device)
        items = num_items.to(loss.device, dtype)
        sums = torch.stack([torch.where(items > 0, loss.detach().to(dtype), 0.0) * items, items])
        self._sums = sums if self._sums is None else self._sums + sums

    def mean(self, accelerator: Accelerator) -> float | None:
        """The mean over all tokens of all processes; None where no batch was counted."""
        self._add_last()
        if self._sums is None:
            return None
        total, items = accelerator.reduce(self._sums, reduction="sum").tolist()
        return total / items if items else float("nan")


@contextmanager
def best_metric_known(args: Any, state: Any) -> Iterator[None]:
    """Around an evaluation within training: a metric that it does not measure is said in our words.

    Of several evaluation sets transformers' early stopping looks at each one's metrics. What it says of those without
    the metric is not true, as long as one of the sets has it, and is left out.

    Raises:
        ConflictError: with what was measured.
    """
    logger = logging.getLogger("transformers.trainer_callback")
    logger.addFilter(_of_another_set)
    try:
        yield
    except KeyError as error:
        if "`metric_for_best_model`" not in str(error):
            raise
        wanted = str(args.metric_for_best_model).removeprefix("eval_")
        logged = [entry for entry in state.log_history if entry.get("step") == state.global_step]
        measured = [name.removeprefix("eval_") for entry in logged for name in entry if name.startswith("eval_")]
        raise ConflictError(
            f'the evaluation did not measure "{wanted}".{nearest(wanted, measured)}',
            where="metric_for_best_model",
            fix=f"It measured {', '.join(measured)}; others come from compute_metrics.",
        ) from error
    finally:
        logger.removeFilter(_of_another_set)


def _of_another_set(record: logging.LogRecord) -> bool:
    return "early stopping required metric_for_best_model, but did not find" not in str(record.msg)
