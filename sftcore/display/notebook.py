"""The view in a notebook: a bar, the curve of the loss and a table of the logs, as HTML that is shown anew."""

from __future__ import annotations

import html
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sftcore.core.visible import visible
from sftcore.display.figures import Curve, Figures, duration, loss
from sftcore.display.stages import Advance, stage

OFTEN = 0.5
"""Seconds between two drawings, if nothing asks for one at once."""
ROWS = 20
"""The newest logs that the table holds; the page of the run has all."""
INLINE = 4 * 2**20
"""The most bytes of a page that a notebook holds; of a larger one it has the link alone."""
_WIDTH, _HEIGHT, _POINTS = 300, 60, 300


class Notebook:
    """Shows a run below the cell that trains. One that is broken off keeps what was shown last."""

    def __init__(self) -> None:
        self._shown: Any = None
        self._drawn_at = 0.0
        self._begin(0, 0)
        self._training = self._ended = False

    def _begin(self, step: int, max_steps: int) -> None:
        self._step, self._max_steps = step, max_steps
        self._taken = self._left = 0.0
        self._losses = Curve()
        self._newest: Figures | None = None
        self._rows: list[Sequence[str]] = []
        self._evaluations: list[str] = []
        self._evaluation: tuple[int, int] | None = None

    @contextmanager
    def stage(self, what: str, total: int | None, unit: str) -> Iterator[Advance]:
        """The bar that tqdm draws, as notebooks know it."""
        with stage(what, total, unit) as advance:
            yield advance

    def open(self, step: int, max_steps: int) -> None:
        """Show the bar below the cell that runs now."""
        self._begin(step, max_steps)
        self._shown, self._training = None, True
        self._draw()

    def step(self, step: int, taken: float, left: float) -> None:
        """Move the bar."""
        self._step, self._taken, self._left = step, taken, left
        if time.monotonic() - self._drawn_at >= OFTEN:
            self._draw()

    def entry(self, entry: dict[str, Any]) -> None:
        """Nothing: `logged` and `evaluated` show it."""

    def logged(self, figures: Figures) -> None:
        """A row of the table, and a point of the curve."""
        self._newest, self._step, self._left = figures, figures.step, figures.left
        self._losses.add(figures.loss)
        accuracy = "" if figures.accuracy is None else f"{figures.accuracy:.3f}"
        others = ", ".join(f"{name} {value}" for name, value in figures.others)
        self._rows = [*self._rows, (f"{figures.step:,}", loss(figures.loss), accuracy, others)][-ROWS:]
        self._draw()

    def evaluated(self, line: str) -> None:
        """A line below the table."""
        self._evaluations = [*self._evaluations, line][-ROWS:]
        self._draw()

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation is; one outside training is shown below the cell that runs now."""
        if self._evaluation is None and not self._training:
            self._begin(0, 0)
            self._shown = None
        first, self._evaluation = self._evaluation is None, (done, total)
        if first or time.monotonic() - self._drawn_at >= OFTEN:
            self._draw()

    def evaluation_over(self) -> None:
        """Take its bar away."""
        self._evaluation = None
        if self._shown is not None:
            self._draw()

    def close(self, page: Path | None = None) -> None:
        """Show the last step and a link to the page; when called again, with all of it written, the page itself."""
        if self._training:
            self._training, self._ended, self._evaluation = False, True, None
            self._draw(page)
        elif self._ended:
            self._ended = False
            self._draw(page, whole=True)

    def _draw(self, page: Path | None = None, *, whole: bool = False) -> None:
        from IPython.display import HTML, display

        self._drawn_at = time.monotonic()
        shown = HTML(self.html(page, whole=whole))
        if self._shown is None:
            self._shown = display(shown, display_id=True)
        else:
            self._shown.update(shown)

    def html(self, page: Path | None = None, *, whole: bool = False) -> str:
        """All that is shown, with a link to the page, or the `whole` page.

        Whatever comes from data or plugins stands in it as text.
        """
        parts = []
        if self._max_steps:
            times = f"{duration(self._taken)}, left {duration(self._left)}"
            parts.append(_bar(self._step, self._max_steps, f"step {self._step:,}/{self._max_steps:,}", times))
        if self._evaluation is not None:
            done, total = self._evaluation
            parts.append(_bar(done, total, "evaluating", f"{done:,}/{total:,} batches"))
        if self._newest is not None:
            figures = ", ".join([f"loss {loss(self._newest.loss)}", *self._newest.beside_loss])
            parts += [f"<div>{_text(figures)}</div>", _curve(self._losses.values), _table(self._rows)]
        parts += [f"<div>{_text(line)}</div>" for line in self._evaluations]
        if page is not None and page.exists():
            parts += [_link(page), _inline(page) if whole else ""]
        return "\n".join(parts)


def _text(value: object) -> str:
    return html.escape(visible(str(value)))


def _bar(done: int, total: int, head: str, tail: str) -> str:
    style = f"width:{_WIDTH}px; height:20px; vertical-align:middle;"
    return f"<div>{_text(head)} <progress value='{done}' max='{total}' style='{style}'></progress> {_text(tail)}</div>"


def _curve(losses: Sequence[float]) -> str:
    """The losses as a line, of at most so many points."""
    known = losses[:: max(len(losses) // _POINTS, 1)]
    if len(known) < 2:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    across = (_WIDTH - 4) / (len(known) - 1)
    points = (
        f"{2 + place * across:.1f},{_HEIGHT - 2 - (one - low) / span * (_HEIGHT - 4):.1f}"
        for place, one in enumerate(known)
    )
    label = f"loss from {loss(known[0])} to {loss(known[-1])}"
    head = f"<svg width='{_WIDTH}' height='{_HEIGHT}' role='img' aria-label='{label}'>"
    line = f"<polyline fill='none' stroke='#2563c9' stroke-width='2' points='{' '.join(points)}'/>"
    return f"{head}{line}</svg>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = ("step", "loss", "accuracy", "others")
    kept = [place for place, name in enumerate(head) if name == "step" or any(row[place] for row in rows)]
    top = "".join(f"<th>{head[place]}</th>" for place in kept)
    body = "".join(f"<tr>{''.join(f'<td>{_text(row[place])}</td>' for place in kept)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _link(page: Path) -> str:
    """A link to the page of the run, which a notebook's server has where it lies below the folder of the notebook."""
    place = page.absolute()
    with suppress(ValueError):
        place = page.absolute().relative_to(os.getcwd())
    shown = f"<code>{_text(place)}</code>"
    if not place.is_absolute():
        shown = f"<a href='{html.escape(quote(place.as_posix()), quote=True)}' target='_blank'>{shown}</a>"
    return f"<div>The page of the run: {shown}</div>"


def _inline(page: Path) -> str:
    """The page itself, which can run its scripts and nothing else: it cannot reach the notebook around it."""
    if page.stat().st_size > INLINE:
        return ""
    text = html.escape(page.read_text(encoding="utf-8"), quote=True)
    style = "width:100%; height:700px; border:0;"
    return f"<iframe title='The page of the run' sandbox='allow-scripts' style='{style}' srcdoc='{text}'></iframe>"
