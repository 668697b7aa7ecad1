"""Keeps the page of a run up to date while it trains: `report.html`, `loss.svg`, and what they are made of."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from sftcore.report.curves import charts_of
from sftcore.report.page import page_of
from sftcore.report.run import FACTS, PAGE, SPEED, read_lines, read_run
from sftcore.report.svg import drawing
from sftcore.train.checkpoint.state import rewind_log
from sftcore.train.record.facts import lengths_of, plugins_of, rows_of
from sftcore.train.record.summary import plan_lines
from sftcore.train.reporting.clock import TrainingClock
from sftcore.train.reporting.memory import most_memory
from sftcore.util.disk import replace_text, writing
from sftcore.util.plain import public
from sftcore.util.warned import count, said_since

if TYPE_CHECKING:
    from sftcore.train.view import RunView

CURVE = "loss.svg"
RUNNING, FINISHED = "running", "finished"
_EVERY = 15.0
"""Seconds between two writings of the page."""
_SHARE = 0.005
"""Of the time of a run, the share that writing the page may take."""


class RunPage(TrainerCallback):  # type: ignore[misc]
    """Writes the page of a run on the first rank, once the run's log was begun.

    Of a run that goes to the hub it holds neither rows nor the folders of this machine.
    """

    def __init__(self, trainer: RunView, warned: int | None = None) -> None:
        self._trainer = trainer
        self._warned = count() if warned is None else warned
        self._clock = TrainingClock()
        self._facts: dict[str, Any] = {}
        self._first, self._next = 0, 0.0

    @property
    def _folder(self) -> Path | None:
        """Where the page goes; None where this process writes none, or not yet."""
        args = self._trainer.args
        return Path(args.output_dir) if args.report_html and self._trainer.recorder.begun else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gather what does not change, and show what a resumed run has behind it."""
        if not args.report_html or not state.is_world_process_zero:
            return
        trainer, rows = self._trainer, self._trainer.train_dataset
        figures: dict[str, Any] = next((one for one in reversed(state.log_history) if "num_tokens" in one), {})
        self._clock.begin(figures.get("num_tokens", 0.0), figures.get("num_supervised_tokens", 0.0))
        self._first, self._next = state.global_step, 0.0
        self._facts = {
            "schema": 1,
            "state": RUNNING,
            "plan": [*plan_lines(trainer)],
            "plugins": plugins_of(trainer),
            "lengths": lengths_of(rows),
            "rows": [] if args.push_to_hub else rows_of(rows, trainer.data.tokenizer),
        }
        if (folder := self._folder) is not None:
            self._begin(folder)

    def _begin(self, folder: Path) -> None:
        """Bring the speeds to those of the steps that a resumed run has behind it; of a new run there are none."""
        known = [one for one in read_lines(folder / SPEED) if one["step"] <= self._first] if self._first else []
        with writing("the page", folder):
            rewind_log(folder / SPEED, known)
        self._write(RUNNING)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step has ended; the page of a run that takes the place of another begins with its first."""
        self._clock.step()
        if self._next == 0.0 and self._facts and (folder := self._folder) is not None:
            self._begin(folder)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the time of an evaluation out."""
        self._clock.pause()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the time of a save out."""
        self._clock.pause()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Note the speed, and write the page if it is due."""
        folder = self._folder
        if folder is None or not logs or not self._trainer.is_in_train or not self._facts:
            return
        if "loss" in logs and "num_tokens" in logs:
            tokens, supervised = self._clock.speed(logs["num_tokens"], logs["num_supervised_tokens"])
            entry = {
                "step": state.global_step,
                "seconds": round(self._clock.seconds(), 3),
                "tokens_per_second": round(tokens, 1),
                "supervised_per_second": round(supervised, 1),
                "memory_mib": round(most_memory(args.device) / 2**20, 1),
            }
            path = folder / SPEED
            with writing("the speed", path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        if time.monotonic() >= self._next:
            self._write(RUNNING)

    @contextmanager
    def kept_up(self) -> Iterator[None]:
        """Around a run: at its end the page says how it ended."""
        self._facts = {}
        try:
            yield
        except BaseException as error:
            self._write(f"stopped by {type(error).__name__}")
            raise
        self._write(FINISHED)

    def _write(self, state: str) -> None:
        """Write the page, and when it is due again: at most a small share of the run's time is spent on it."""
        folder = self._folder
        if folder is None or not self._facts:
            return
        begun = time.monotonic()
        spelled = public if self._trainer.args.push_to_hub else dict
        facts = spelled({**self._facts, "state": state, "warnings": said_since(self._warned)})
        with writing("the page", folder):
            replace_text(folder / FACTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
            write_page(folder)
        spent = time.monotonic() - begun
        self._next = begun + max(_EVERY, spent / _SHARE)


def write_page(folder: Path) -> None:
    """Write page and curve of the run in a folder, from what the run has left there."""
    run = read_run(folder)
    replace_text(folder / PAGE, page_of(run))
    losses = [chart for chart in charts_of([run]) if chart.name == "loss"]
    if losses:
        replace_text(folder / CURVE, drawing(losses[0]))
