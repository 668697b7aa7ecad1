"""What a run shows in a notebook, in place of transformers' callback; imported where there is IPython alone."""

from __future__ import annotations

from rich.console import Console
from transformers.utils.notebook import NotebookProgressCallback

from sftcore.display.notebook import Notebook
from sftcore.train.reporting.progress import Counted, RichProgress


class NotebookProgress(RichProgress, NotebookProgressCallback):
    """Whoever removes transformers' own callback removes this one."""

    def __init__(self, metrics: Counted) -> None:
        super().__init__(Console(quiet=True), metrics, view=Notebook())
