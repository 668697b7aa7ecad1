"""A user's own `compute_loss` where a process has no rows left for the last batch of an epoch.

Such a process takes part with a batch whose labels are all -100. The loss of the plugin is divided by the supervised
tokens of all processes, so that this batch weighs nothing. A loss of one's own may take the mean over its own batch,
which is NaN without any token. Then the process computes it on tokens that it has, with weight zero, and the step is
the mean over the processes that have rows, as that of a single process is over its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field

from sftcore.core.types import IGNORED
from sftcore.train.parts.randomness import Randomness

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sftcore.train.parts.metrics import Metrics


@define
class OwnLossWithoutRows:
    """Weighs a user's `compute_loss` in the batches for which not every process has rows.

    own: the trainer's `compute_loss` that needs none of this.
    takes_mean: whether the user's is NaN for a batch without supervised tokens; None until that was tried.
    """

    own: Callable[..., Any]
    accelerator: Accelerator
    metrics: Metrics
    takes_mean: bool | None = field(default=None, init=False)
    _share: float = field(default=1.0, init=False)
    _ours: Callable[..., Any] | None = field(default=None, init=False)
    _before: Callable[..., Any] | None = field(default=None, init=False)

    def put_on(self, trainer: Any, batches: Sequence[Mapping[str, Any]], with_rows: Sequence[int], count: int) -> None:
        """Have the trainer's `compute_loss` weigh the batches of one step, where it is the user's and has to.

        Args:
            trainer: whose `compute_loss` is set, and set back by `take_off`.
            batches: on their device.
            with_rows: of each batch how many of the processes have rows for it.
            count: of processes.
        """
        compute = trainer.compute_loss
        if not batches or getattr(compute, "__func__", None) is self.own or all(one == count for one in with_rows):
            return
        known = [(one.get("labels"), rows) for one, rows in zip(batches, with_rows, strict=True)]

        def compute_loss(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            rows = next((rows for labels, rows in known if labels is inputs.get("labels")), count)
            if rows == count or not model.training:
                return compute(model, inputs, *args, **kwargs)
            return self._weighted(compute, count / max(rows, 1), model, inputs, *args, **kwargs)

        self._before = vars(trainer).get("compute_loss")
        vars(trainer)["compute_loss"] = self._ours = compute_loss

    def take_off(self, trainer: Any) -> None:
        """Set it back."""
        if self._ours is None:
            return
        if self._before is None:
            del vars(trainer)["compute_loss"]
        else:
            vars(trainer)["compute_loss"] = self._before
        self._ours = self._before = None

    def before_share(self, loss: torch.Tensor) -> torch.Tensor:
        """The plugin's loss where the user's asks for it: it is divided by the tokens of all processes already."""
        return loss if self._share == 1.0 else loss / self._share

    def _weighted(
        self, compute: Callable[..., Any], share: float, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The loss with the weight of this process, which is none where it has no rows."""
        if self.takes_mean is None:
            self.takes_mean = self._is_nan_without_tokens(compute, model, inputs, *args, **kwargs)
        if bool((inputs["labels"] != IGNORED).any()):
            self._share = share if self.takes_mean else 1.0
            try:
                return _times(compute(model, inputs, *args, **kwargs), self._share)
            finally:
                self._share = 1.0
        before = self.metrics.sums()
        found = _times(compute(model, _with_labels(inputs) if self.takes_mean else inputs, *args, **kwargs), 0.0)
        if (counted := self.metrics.sums()) is not None:
            self.metrics.put_back(torch.zeros_like(counted) if before is None else before)
        return found

    def _is_nan_without_tokens(
        self, compute: Callable[..., Any], model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> bool:
        """Tried once by all processes together, without gradients; what the trial counts or draws is forgotten."""
        sums, random = self.metrics.sums(), Randomness.now()
        empty = {**inputs, "labels": torch.full_like(inputs["labels"], IGNORED)}
        try:
            with torch.no_grad():
                found = compute(model, empty, *args, **kwargs)
            loss = found[0] if isinstance(found, tuple) else found
            is_nan = not bool(torch.isfinite(loss.detach()).all())
        except Exception:  # a loss that cannot do without tokens
            is_nan = True
        self.metrics.put_back(sums)
        random.restore()
        seen = self.accelerator.gather(torch.tensor([is_nan], device=self.accelerator.device).int())
        return bool(seen.any())


def _with_labels(inputs: dict[str, Any]) -> dict[str, Any]:
    """The batch with labels for each token that is not padding, as a causal model has them."""
    labels, mask = inputs.get("input_ids", inputs["labels"]), inputs.get("attention_mask")
    if getattr(mask, "shape", None) == labels.shape:
        labels = torch.where(mask.bool(), labels, IGNORED)  # type: ignore[union-attr]
    weights = {"weights": torch.ones_like(inputs["weights"])} if "weights" in inputs else {}
    return {**inputs, "labels": labels, **weights}


def _times(found: Any, weight: float) -> Any:
    return (found[0] * weight, *found[1:]) if isinstance(found, tuple) else found * weight
