"""Plain lines, one for each log, for files, pipes and terminals that cannot draw; and the same as JSON."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from sftcore.display.figures import Figures, duration
from sftcore.display.stages import Advance
from sftcore.display.streams import say

SELDOM = 30.0
"""Seconds after which a stage that is still going on says how far it is."""


class Lines:
    """Lines, on `stream`, or on what is stdout when they are written. Long stages tell of themselves on stderr."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._given = stream

    @property
    def _stream(self) -> TextIO:
        return self._given if self._given is not None else sys.stdout

    @contextmanager
    def stage(self, what: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Nothing is said of a short stage: the plan says what came of it."""
        yield _Told(what, total, unit, lambda line: say(line, sys.stderr)) if total else (lambda _: None)

    def open(self, step: int, max_steps: int) -> None:
        """Nothing: the first log says it."""

    def step(self, step: int, taken: float, left: float) -> None:
        """Nothing."""

    def logged(self, figures: Figures) -> None:
        """One line."""
        say(figures.line, self._stream)

    def entry(self, entry: dict[str, Any]) -> None:
        """Nothing: `logged` and `evaluated` say it."""

    def evaluated(self, line: str) -> None:
        """One line."""
        say(line, self._stream)

    def evaluating(self, done: int, total: int) -> None:
        """Nothing."""

    def evaluation_over(self) -> None:
        """Nothing."""

    def close(self, page: Path | None = None) -> None:
        """Nothing."""


class JsonLines(Lines):
    """Each log as a line of JSON: an entry of the run's history. What is not finite is null, which JSON can hold."""

    def entry(self, entry: dict[str, Any]) -> None:
        """One line."""
        say(json.dumps(_plain(entry), ensure_ascii=False, allow_nan=False), self._stream)

    def logged(self, figures: Figures) -> None:
        """Nothing: `entry` has said it."""

    def evaluated(self, line: str) -> None:
        """Nothing."""


class _Told:
    """How far a stage is, said every `SELDOM` seconds."""

    def __init__(self, what: str, total: int, unit: str, tell: Callable[[str], None]) -> None:
        self._what, self._total, self._unit, self._tell = what, total, unit, tell
        self._done, self._begun = 0, time.monotonic()
        self._next = self._begun + SELDOM

    def __call__(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now >= self._next:
            self._next = now + SELDOM
            left = duration((now - self._begun) / max(self._done, 1) * (self._total - self._done))
            self._tell(f"{self._what}: {self._done:,} of {self._total:,} {self._unit}, left {left}")


def _plain(value: Any) -> Any:
    """A logged value as JSON holds it."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "tolist"):  # of numpy or torch
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
