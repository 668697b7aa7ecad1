"""The live view in a terminal: how far a run is, the curve of its loss, and its newest figures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from sftcore.core.visible import visible
from sftcore.display.figures import BLOCKS, LETTERS, Curve, Figures, duration, loss, seconds, sparkline
from sftcore.display.screen import Screen
from sftcore.display.stages import Advance
from sftcore.display.streams import encodable

_BAR, _OTHERS, _GAP = 40, 4, "  "
"""The most characters of a bar, the most lines of what else is logged, and what stands between two figures."""


class Live:
    """Draws on the terminal of a console. What others print meanwhile scrolls above it."""

    def __init__(self, console: Console) -> None:
        self._screen = Screen(console)
        self._draws_blocks = encodable(BLOCKS, console.file) == BLOCKS
        self._begin(0, 0)
        self._training = False

    def _begin(self, step: int, max_steps: int) -> None:
        self._step, self._first, self._max_steps = step, step, max_steps
        self._taken = self._left = 0.0
        self._losses = Curve()
        self._newest: Figures | None = None
        self._evaluation: tuple[int, int] | None = None

    # --- Before the first step ---------------------------------------------------------------------------------------
    @contextmanager
    def stage(self, what: str, total: int | None, unit: str) -> Iterator[Advance]:
        """A bar while rows are counted, then a line; of what is not counted only a line: libraries draw there."""
        if total is None or self._training:
            if not self._training:
                self._screen.print(f"{what} …" if self._draws_blocks else f"{what} ...")
            yield lambda _: None
            return
        begun, done = time.monotonic(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if self._screen.is_due():
                self._screen.draw(self._counted(what, done, total, unit, time.monotonic() - begun))

        self._screen.open()
        self._screen.draw(self._counted(what, 0, total, unit, 0.0))
        try:
            yield advance
        except BaseException:
            self._screen.draw(self._counted(what, done, total, unit, time.monotonic() - begun))
            self._screen.close()
            raise
        self._screen.draw(())
        self._screen.close()
        self._screen.print(f"{what}: {done:,} of {total:,} {unit} in {seconds(time.monotonic() - begun)}")

    def _counted(self, what: str, done: int, total: int, unit: str, taken: float) -> list[Text]:
        parts = [Text(what), self._bar(done, total), Text(f"{done:,}/{total:,} {unit}")]
        if done and taken > 0:
            left = taken / done * (total - done)
            parts += [Text(f"{done / taken:,.0f} {unit}/s"), Text(f"left {duration(left)}")]
        return self._flowing(parts)

    # --- Training -----------------------------------------------------------------------------------------------------
    def open(self, step: int, max_steps: int) -> None:
        """Show the bar."""
        self._begin(step, max_steps)
        self._training = True
        self._screen.open()
        self._draw()

    def step(self, step: int, taken: float, left: float) -> None:
        """Move the bar."""
        self._step, self._taken, self._left = step, taken, left
        if self._screen.is_due() or step >= self._max_steps:
            self._draw()

    def entry(self, entry: dict[str, Any]) -> None:
        """Nothing: `logged` and `evaluated` show it."""

    def logged(self, figures: Figures) -> None:
        """Show the newest figures."""
        self._newest, self._step, self._left = figures, figures.step, figures.left
        self._losses.add(figures.loss)
        if self._screen.is_due():
            self._draw()

    def evaluated(self, line: str) -> None:
        """One line that stays, above the rest."""
        self._screen.print(line)

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation is; one outside training has the screen for itself."""
        first, self._evaluation = self._evaluation is None, (done, total)
        self._screen.open()
        if first or self._screen.is_due():
            self._draw()

    def evaluation_over(self) -> None:
        """Take its bar away."""
        if self._evaluation is None:
            return
        self._evaluation = None
        self._draw()
        if not self._training:
            self._screen.close()

    def close(self, page: Path | None = None) -> None:
        """Leave what is shown where it is."""
        if self._screen.is_open:
            self._evaluation = None
            self._draw()
            self._screen.close()
        self._training = False

    # --- What is drawn ------------------------------------------------------------------------------------------------
    def _draw(self) -> None:
        lines: list[Text] = []
        if self._training:
            left = duration(self._left) if self._step > self._first else "unknown"
            lines += self._flowing(
                [
                    Text(f"step {self._step:,}/{self._max_steps:,}", style="bold"),
                    self._bar(self._step, self._max_steps),
                    Text(f"{duration(self._taken)}, left {left}"),
                ]
            )
        if self._training and self._newest is not None:
            lines += self._of_loss(self._newest)
            lines += self._flowing([Text(visible(part)) for part in self._newest.beside_loss])
            lines += self._flowing([Text(f"{name} {value}") for name, value in self._newest.others])[:_OTHERS]
        if self._evaluation is not None:
            done, total = self._evaluation
            count = Text(f"{done:,}/{total:,} {'batches' if total > 1 else 'batch'}")
            lines += self._flowing([Text("evaluating"), self._bar(done, total), count])
        self._screen.draw(lines)

    def _of_loss(self, newest: Figures) -> list[Text]:
        """The newest loss, the curve of all losses that this run has logged, and the lowest of them."""
        losses = self._losses
        head = Text(f"loss {loss(newest.loss)}", style="bold")
        low = [f"from {loss(losses.first)}", f"lowest {loss(losses.lowest)}"] if len(losses.values) > 1 else []
        told = Text(_GAP.join(low), style="dim")
        room = self._screen.width - head.cell_len - told.cell_len - 2 * len(_GAP)
        if room < 8:
            told, room = Text(), self._screen.width - head.cell_len - len(_GAP)
        curve = sparkline(losses.values, min(max(room, 1), 60), BLOCKS if self._draws_blocks else LETTERS)
        return [Text(_GAP).join([head, Text(curve, style="cyan"), *([told] if told.plain else [])])]

    def _bar(self, done: int, total: int) -> Text:
        width = max(min(self._screen.width - 40, _BAR), 8)
        filled = min(width * done // total, width) if total else 0
        full, empty = ("━", "─") if self._draws_blocks else ("#", ".")
        bar = Text(full * filled, style="green") + Text(empty * (width - filled), style="dim")
        return bar + Text(f" {min(100 * done // total, 100) if total else 0:d}%")

    def _flowing(self, parts: Sequence[Text]) -> list[Text]:
        """The parts one behind another, on as many lines as they need."""
        lines: list[Text] = []
        for part in parts:
            if lines and lines[-1].cell_len + len(_GAP) + part.cell_len <= self._screen.width:
                lines[-1] = Text.assemble(lines[-1], _GAP, part)
            else:
                lines.append(part)
        return lines
