"""Loss and perplexity of an evaluation over the supervised tokens of all processes, and metrics it does not measure."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import torch
from accelerate.utils import gather_object

from sftcore.core.errors import ConflictError, nearest
from sftcore.core.types import IGNORED
from sftcore.model.unwrap import causal_model
from sftcore.train.parts.sums import widest_float
from sftcore.trials.likelihood import not_a_likelihood
from sftcore.util.warned import warn

if TYPE_CHECKING:
    from accelerate import Accelerator

PERPLEXITY = "perplexity"


class EvaluationLoss:
    """Sums losses by their tokens, where transformers takes the mean of the batches' means.

    `fault` says why the loss is not a negative log-likelihood, so that there is no perplexity; it is empty where it is
    one, and None as long as that was not measured.
    """

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None
        self._last: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None
        self._all_known = True
        self.prefix = "eval"
        self.fault: str | None = None

    def begin(self, prefix: str) -> None:
        """Forget what was counted; the metrics of this evaluation begin with `prefix`, such as `eval_dev`."""
        self._sums, self._last, self._all_known, self.prefix = None, None, True, prefix

    def add(self, loss: torch.Tensor, num_items: torch.Tensor, likelihood: torch.Tensor | None = None) -> None:
        """Count the loss of one batch, a scalar: the mean over `num_items`, a scalar, which may be 0.

        `likelihood` is the plugin's loss alone, without what others add to it or compute in its place.
        """
        self._add_last()
        self._last = loss, num_items, likelihood

    def gave(self, loss: torch.Tensor, labels: torch.Tensor) -> None:
        """What `compute_loss` has given for a batch with these labels (B, T), where it may be the user's own.

        One that does not ask ours is a mean over rows, as transformers takes it; without any row it counts nothing.
        """
        if self._last is None:
            self._last = loss, (labels != IGNORED).reshape(len(labels), -1).any(-1).sum(), None
        else:
            self._last = loss, *self._last[1:]
        self._add_last()

    def _add_last(self) -> None:
        if self._last is None:
            return
        (loss, num_items, likelihood), self._last = self._last, None
        self._all_known = self._all_known and likelihood is not None
        dtype = widest_float(loss.device)
        items = num_items.to(loss.device, dtype)
        both = loss, loss if likelihood is None else likelihood
        means = torch.stack([one.detach().to(loss.device, dtype) for one in both])
        sums = torch.cat([torch.where(items > 0, means, 0.0) * items, items[None]])
        self._sums = sums if self._sums is None else self._sums + sums

    def fill(self, metrics: dict[str, float], accelerator: Accelerator) -> None:
        """Put `means` among the metrics of this evaluation; a perplexity of the user's own stays."""
        for name, value in self.means(accelerator).items():
            key = f"{self.prefix}_{name}"
            metrics[key] = metrics.get(key, value) if name == PERPLEXITY else value

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The loss, a mean over all tokens of all processes, and the perplexity where it is known; or nothing.

        The perplexity is the exponential of the mean negative log-likelihood.
        """
        self._add_last()
        if self._sums is None:
            return {}
        loss, likelihood, items = accelerator.reduce(self._sums, reduction="sum").tolist()
        if not items:
            return {"loss": math.nan}
        found = {"loss": loss / items}
        if self.fault == "" and self._all_known:
            found[PERPLEXITY] = exponential(likelihood / items)
        return found


def exponential(mean: float) -> float:
    """The exponential; one that no float can hold is infinite.

    >>> exponential(0.0), exponential(1e4)
    (1.0, inf)
    """
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


def measure_likelihood(trainer: Any, *, before_training: bool = False) -> None:
    """Find out, once in a run, whether its loss is a negative log-likelihood; all processes call this together.

    Raises:
        ConflictError: it is not one, and the run looks for its best perplexity.
    """
    evaluation = trainer.evaluation
    if evaluation.fault is not None:
        return
    bound, causal = trainer.bound_loss, causal_model(trainer.loaded.model)
    with trainer.noise.paused(), trainer.kernels.running(), trainer.accelerator.autocast():
        fault = not_a_likelihood(
            bound.loss, trainer.model, causal, trainer.args.device, gathers=bound.gathers,
            longest=trainer.data.max_length,
        )  # fmt: skip
    faults = gather_object([fault]) if trainer.args.world_size > 1 else [fault]
    evaluation.fault = next(filter(None, faults), "")
    if not evaluation.fault:
        return
    named = next((one.label for one in trainer.setup.plan.selected("loss")), "the loss")
    said = f"{named} is not a negative log-likelihood, so that evaluations have no perplexity: {evaluation.fault}"
    metric = str(trainer.args.metric_for_best_model or "")
    if before_training and metric.endswith(PERPLEXITY) and not trainer.measures_more:
        raise ConflictError(
            f"{said}.", where="metric_for_best_model", fix=f"Use {metric.removesuffix(PERPLEXITY)}loss."
        )
    if before_training:
        trainer.loaded = attrs.evolve(trainer.loaded, notes=(*trainer.loaded.notes, said))
    elif trainer.args.process_index == 0:
        warn(f"{said}.")


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
