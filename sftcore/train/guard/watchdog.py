"""A watch on the loss with patience: a run whose loss stays above a level is stopped."""

from __future__ import annotations

from attrs import define

PATIENCE = 3
"""Steps in a row that are waited for where nobody says how many, as in Axolotl."""


@define
class LossWatch:
    """Counts the steps in a row whose loss is above `threshold`, and trips when they are `patience`.

    >>> watch = LossWatch(5.0, 2)
    >>> [watch.add(loss) for loss in (6.0, 4.0, 6.0, 7.0)]
    [False, False, False, True]
    """

    threshold: float
    patience: int = PATIENCE
    count: int = 0
    tripped: bool = False

    @classmethod
    def of(cls, threshold: float | None, patience: int | None) -> LossWatch | None:
        """The watch that settings ask for; None without a threshold."""
        return None if threshold is None else cls(threshold, patience or PATIENCE)

    def add(self, loss: float) -> bool:
        """Count the loss of one step; whether the run is to stop behind it."""
        self.count = self.count + 1 if loss > self.threshold else 0
        self.tripped = self.count >= self.patience
        return self.tripped

    def restore(self, count: int) -> None:
        """Continue from what a checkpoint holds; a run that goes on after it was stopped has all its patience again."""
        self.count = 0 if count >= self.patience else count

    def sentence(self) -> str:
        """Why the run was stopped; empty if it was not."""
        if not self.tripped:
            return ""
        return f"stopped, because the loss was above {self.threshold:g} in {self.count} steps in a row"
