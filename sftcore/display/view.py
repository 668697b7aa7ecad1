"""What shows a run: the calls that it gets, which are no more than what there is to see."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from sftcore.display.figures import Figures
from sftcore.display.stages import Advance


class View(Protocol):
    """Shows one run, on one process of it. It is opened anew for each call of `train`."""

    def stage(self, what: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        """Around a stage before the first step; `total` is None where nothing is counted."""

    def open(self, step: int, max_steps: int) -> None:
        """Training begins behind this step."""

    def step(self, step: int, taken: float, left: float) -> None:
        """A step has ended; seconds of training so far, and to come. Called at every step."""

    def logged(self, figures: Figures) -> None:
        """A log of training."""

    def entry(self, entry: dict[str, Any]) -> None:
        """Any log, as the run's history holds it; called before what is made of it."""

    def evaluated(self, line: str) -> None:
        """A log of an evaluation, or of the run's own, in one line."""

    def evaluating(self, done: int, total: int) -> None:
        """Batches of an evaluation or a prediction, in training or alone."""

    def evaluation_over(self) -> None:
        """It has ended."""

    def close(self, page: Path | None = None) -> None:
        """Training, or an evaluation alone, has ended or was broken off; may be called again."""
