"""Looks at every step before the optimizer takes it: NaN, Inf, divergence, and signals to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from attrs import frozen

from sftcore.core.errors import DivergenceError
from sftcore.train.guard.divergence import LossLevel, Nonfinite, RememberedBatches
from sftcore.train.guard.watchdog import LossWatch
from sftcore.train.parts.loss import on_device
from sftcore.train.parts.part import Part
from sftcore.util.warned import warn

if TYPE_CHECKING:
    from accelerate import Accelerator


@frozen
class Position:
    """Where a run stands: optimizer steps taken, the epoch, and how many of its micro-batches were drawn."""

    step: int
    epoch: int
    batches: int


class StepGuard(Part):
    """Decides whether a step is taken. All processes decide together, in one short reduction a step.

    Args:
        policy: what happens where a loss or gradient is not finite: "stop", "skip" or "continue".
        accelerator: for the reduction.
        position: where the run stands now.
        received: the number of the signal that this process received, 0 without one.
        remember: called as a step begins; what it returns undoes the step (gradients and all that was counted).
        name_rows: describes rows of the training set for an error.
        suspects: plugins of others that take part in the loss, in words; empty without any.
    """

    def __init__(
        self,
        policy: str,
        accelerator: Accelerator,
        *,
        position: Callable[[], Position],
        received: Callable[[], int],
        remember: Callable[[], Callable[[], None]],
        name_rows: Callable[[list[int]], str],
        suspects: str = "",
    ) -> None:
        self.nonfinite = Nonfinite(policy)
        self.level: LossLevel | None = None
        self.watchdog: LossWatch | None = None
        self.stopped_by = 0
        self._accelerator = accelerator
        self._position, self._received, self._remember = position, received, remember
        self._name_rows, self._suspected = name_rows, suspects
        self._losses: list[torch.Tensor] = []
        self._undo: Callable[[], None] = lambda: None
        self._remembered: RememberedBatches | None = None

    def begin(self, level: LossLevel | None, watchdog: LossWatch | None = None) -> None:
        """Forget the last call of `train`.

        Args:
            level: finds losses that run away; None where nobody looks for them.
            watchdog: counts losses above a level; None where nobody does.
        """
        self.stopped_by, self.level, self.watchdog = 0, level, watchdog
        self.nonfinite.restore({"count": 0, "steps": []})

    def watch(self, loader: Any) -> None:
        """Remember which rows are in the batches of a loader; None of a data set without a length."""
        base = getattr(loader, "base_dataloader", None)
        self._remembered = None
        if base is not None and getattr(base, "batch_sampler", None) is not None:
            self._remembered = RememberedBatches(base.batch_sampler)
            vars(base)["batch_sampler"] = self._remembered  # torch refuses to have it set

    def rows_of(self, batch: int) -> list[int] | None:
        """The rows of a batch of this epoch, by their places in the training set; None where they are not known."""
        return None if self._remembered is None else self._remembered.remembered.get(batch)

    def batches(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """A step begins, which may have to be undone."""
        self._losses = []
        self._undo = self._remember()

    def after_backward(self, loss: torch.Tensor) -> None:
        """Keep the loss until the whole step is there."""
        self._losses.append(loss.detach().float())

    def before_optimizer(self, norm: torch.Tensor | float | None) -> None:
        """Require that this step's losses and gradients are finite and that the loss does not run away.

        Raises:
            DivergenceError: they are not and the policy is "stop", or the loss runs away.
        """
        losses = torch.stack(self._losses)
        bad_losses = ~torch.isfinite(losses)
        bad = bad_losses.any()
        # float16's scaler meets Inf in gradients while it looks for its scale, and leaves such steps out itself
        if norm is not None and self._accelerator.scaler is None:
            bad = bad | ~torch.isfinite(on_device(norm, losses.device))
        # one short read, before the optimizer changes a weight, is all that the host waits for in a step
        found = torch.stack([bad.float(), torch.nan_to_num(losses).sum(), losses.new_full((), self._received())])
        if self._accelerator.num_processes > 1:
            found = self._accelerator.gather(found[None]).transpose(0, 1)
            found = torch.stack([found[0].max(), found[1].mean(), found[2].max()])
        is_bad, loss, signal = found.tolist()
        self.stopped_by = int(signal)
        if is_bad:
            self._not_finite(bad_losses.tolist(), norm)
            return
        if self.watchdog is not None:
            self.watchdog.add(loss)
        if self.level is not None and (ran := self.level.add(loss)):
            step = self._position().step + 1
            raise DivergenceError(
                f"the loss has diverged: the mean of the last ten steps is {ran[0]:.4g}, and it was {ran[1]:.4g}.",
                step=step,
                where=f"step {step}",
                fix="Lower learning_rate, add warmup_steps or max_grad_norm, or raise divergence_factor, and resume "
                "from an earlier checkpoint.",
            )

    def signal_received(self) -> bool:
        """Whether a signal has reached one of the processes; all of them ask together."""
        received = self._received()
        if self._accelerator.num_processes > 1:
            received = int(self._accelerator.gather(torch.tensor([received], device=self._accelerator.device)).max())
        self.stopped_by = received
        return bool(received)

    def state(self) -> dict[str, Any]:
        """The steps that were not finite, and the losses to compare the next ones with."""
        level = self.level
        known = {} if level is None else {"losses": level.losses, "lowest": level.lowest, "first": level.first}
        watched = {} if self.watchdog is None else {"count": self.watchdog.count}
        return {"nonfinite": self.nonfinite.as_dict(), "level": known, "watchdog": watched}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.nonfinite.restore(state["nonfinite"])
        if self.watchdog is not None:
            self.watchdog.restore(state.get("watchdog", {}).get("count", 0))
        if self.level is not None:
            for name, value in state["level"].items():
                setattr(self.level, name, value)

    def _not_finite(self, bad_losses: list[bool], norm: torch.Tensor | float | None) -> None:
        step = self._position().step + 1
        in_loss, rows, batches = self._suspects(bad_losses, norm)
        what = f"{'the loss' if in_loss else 'a gradient'} is NaN or Inf"
        seen = self._name_rows(rows) if rows else self._named_batches(batches)
        self.nonfinite.add(step)
        others = f"Try it without {self._suspected}, which takes part in the loss. " if self._suspected else ""
        if self.nonfinite.policy == "stop":
            raise DivergenceError(
                f"{what}, on {seen}; no weight was changed by it.",
                step=step,
                rows=rows,
                where=f"step {step}",
                fix=f"{others}Look at these rows, lower learning_rate, or use bf16 or float32; on_nonfinite: skip "
                "leaves such steps out.",
            )
        skip = self.nonfinite.policy == "skip"
        if skip:
            self._undo()
        if self._accelerator.is_main_process:
            done = "the step was left out" if skip else "the model was trained on it all the same"
            warn(f"step {step}: {what}, on {seen}; {done}. {others}".strip())

    def _suspects(self, bad_losses: list[bool], norm: torch.Tensor | float | None) -> tuple[bool, list[int], list[int]]:
        """Whether it was a loss, and the rows and batches of all processes in which it was found."""
        drawn = self._position().batches
        batches = [drawn - len(bad_losses) + place for place in range(len(bad_losses))]
        guilty = [number for number, is_bad in zip(batches, bad_losses, strict=True) if is_bad] or batches
        is_mine = any(bad_losses) or not math.isfinite(float(norm) if norm is not None else 0.0)
        rows = self._remembered.rows(guilty) if self._remembered is not None and is_mine else []
        known = [(any(bad_losses), rows, guilty if is_mine else [])]
        if self._accelerator.num_processes > 1:
            known = gather_object(known)
        if in_loss := any(one[0] for one in known):
            known = [one for one in known if one[0]]
        return in_loss, [row for one in known for row in one[1]], sorted({number for one in known for number in one[2]})

    def _named_batches(self, batches: list[int]) -> str:
        return f"batch {', '.join(map(str, batches))} of epoch {self._position().epoch}, counted from 0"
