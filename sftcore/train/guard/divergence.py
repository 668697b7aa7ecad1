"""NaN, Inf and diverging losses: what counts as one, and which rows it came from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import define, field

WINDOW = 10
"""Steps whose mean loss is compared."""
MIN_RISE = 1.0
"""Nats above the lowest mean, below which a rise is not called divergence, whatever the factor."""
MIN_RISE_FROM_FIRST = 2.0
"""The same above the loss of the first step, which is that of one batch, and may be an easy one."""
_REMEMBERED = 4096


@define
class LossLevel:
    """Says when a loss has diverged: the mean of the last ten steps against the lowest such mean before.

    A loss has diverged if the mean is at least `factor` times the lowest one and a nat above it. It has diverged, too,
    if the mean is `factor` times the loss of the first step and two nats above that: no update had touched the model
    at that step, and a learning rate that is far too high ruins it before there is any mean of ten. A single bad batch
    does not move a mean of ten so far, and a rise near zero stays below a nat. `lowest` starts at the loss of a guess.

    >>> level = LossLevel(2.0)
    >>> [level.add(loss) for loss in [2.0] * 10 + [9.0]], level.add(40.0)
    ([None, None, None, None, None, None, None, None, None, None, None], (6.5, 2.0))
    """

    factor: float
    losses: list[float] = field(factory=list)
    lowest: float | None = None
    first: float | None = None

    @classmethod
    def of(cls, factor: float | None, config: Any) -> LossLevel | None:
        """The level of a model with this configuration, from the loss of a guess; None without a factor."""
        return None if factor is None else cls(factor, lowest=math.log(config.get_text_config().vocab_size))

    def add(self, loss: float) -> tuple[float, float] | None:
        """Count the loss of one step; the mean and the lowest one where it has run away."""
        self.first = loss if self.first is None else self.first
        self.losses = [*self.losses, loss][-WINDOW:]
        if len(self.losses) < WINDOW:
            return None
        mean = sum(self.losses) / WINDOW
        if self.lowest is None or mean < self.lowest:
            self.lowest = mean
        for level, rise in ((self.lowest, MIN_RISE), (self.first, MIN_RISE_FROM_FIRST)):
            if mean >= self.factor * level and mean >= level + rise:
                return mean, level
        return None


@define
class RememberedBatches:
    """The batches of row numbers that a sampler gives, each remembered by its number in the epoch.

    It stands in for the sampler: every other attribute is the sampler's.
    """

    batches: Any
    remembered: dict[int, list[int]] = field(factory=dict)

    def __iter__(self) -> Iterator[list[int]]:
        self.remembered.clear()
        for number, batch in enumerate(self.batches):
            self.remembered[number] = batch
            self.remembered.pop(number - _REMEMBERED, None)
            yield batch

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "batches":
            raise AttributeError(name)
        return getattr(self.batches, name)

    def rows(self, numbers: Sequence[int]) -> list[int]:
        """The rows of these batches, as far as they are known."""
        return [row for number in numbers for row in self.remembered.get(number, ())]


@define
class Nonfinite:
    """The steps of a run whose loss or gradients were not finite, and what was done with them."""

    policy: str
    count: int = 0
    steps: list[int] = field(factory=list)

    def add(self, step: int) -> None:
        """Count a step."""
        self.count += 1
        if len(self.steps) < 100:
            self.steps.append(step)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for manifest and checkpoint."""
        return {"policy": self.policy, "count": self.count, "steps": list(self.steps)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what a checkpoint holds."""
        self.count, self.steps = state["count"], list(state["steps"])

    def sentence(self) -> str:
        """What was done with these steps; empty if there were none."""
        if not self.count:
            return ""
        done = "left out" if self.policy == "skip" else "trained on all the same"
        return f"{self.count} step(s) with NaN or Inf {done}"
