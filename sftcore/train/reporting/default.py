"""What SFTTrainer shows by itself, in place of transformers' own bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from transformers import PrinterCallback, ProgressCallback

from sftcore.train.reporting.progress import Counted, RichProgress

_OF_TRANSFORMERS = ("PrinterCallback", "ProgressCallback", "NotebookProgressCallback")


class DefaultProgress(RichProgress, ProgressCallback):
    """What SFTTrainer shows by itself; whoever removes transformers' own callback removes this one."""


def show_progress(trainer: Any) -> None:
    """Have the trainer show its run in one view: its own in place of transformers', or the one that the user has given.

    With `disable_tqdm` transformers' printed logs stay, unless the user has given our view.
    """
    callbacks = trainer.callback_handler.callbacks
    added = [one for one in callbacks if type(one).__name__ in _OF_TRANSFORMERS][-1]  # it adds its own last
    given = [one for one in callbacks if one is not added and isinstance(one, (RichProgress, ProgressCallback))]
    if isinstance(added, PrinterCallback) and not any(isinstance(one, RichProgress) for one in given):
        return
    if given:
        callbacks.remove(added)
    else:
        callbacks[callbacks.index(added)] = _default(added, trainer.metrics)


def _default(instead: Any, metrics: Counted) -> RichProgress:
    if isinstance(instead, ProgressCallback):
        return DefaultProgress(Console(), metrics)
    from sftcore.train.reporting.in_notebook import NotebookProgress

    return NotebookProgress(metrics)


@contextmanager
def closing(trainer: Any) -> Iterator[None]:
    """Around training, or an evaluation alone: whatever ends it, the terminal is left in order."""
    within = trainer.is_in_train
    try:
        yield
    finally:
        for one in trainer.callback_handler.callbacks:
            if isinstance(one, RichProgress) and not within:
                one.close()
