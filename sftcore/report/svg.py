"""The curve of the loss as a picture: `loss.svg`, for a README or a viewer that runs no scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator

from sftcore.report.curves import Chart, Curve

WIDTH, HEIGHT = 800, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 44
COLORS = ("#2563c9", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490", "#be123c", "#475569")
_POINTS = 1000
"""Points of a curve: more than there are pixels are not seen."""


def drawing(chart: Chart) -> str:
    """A chart as SVG: axes with ticks, a line for each curve, and their names.

    The text takes the colour of the surroundings in a light and in a dark page alike.
    """
    curves = [curve for curve in chart.curves if curve.steps]
    if not curves:
        return ""
    steps = [step for curve in curves for step in curve.steps]
    values = [value for curve in curves for value in curve.values]
    across, up = (
        _Axis(min(steps), max(steps), LEFT, WIDTH - RIGHT),
        _Axis(min(values), max(values), HEIGHT - BOTTOM, TOP),
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="#6b7280">',
        f"<title>{_text(chart.title)}</title><desc>{_text(chart.summary())}</desc>",
        f'<text x="{LEFT}" y="22" font-size="15">{_text(chart.title)}</text>',
        *_ticks(across, up),
        *(part for number, curve in enumerate(curves) for part in _line(curve, COLORS[number % 8], across, up)),
        *_legend(curves),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">step</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Axis:
    """Places values between two pixels."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        if low == high:
            low, high = low - 0.5, high + 0.5
        self.low, self.high, self._first, self._last = low, high, first, last

    def __call__(self, value: float) -> float:
        return self._first + (value - self.low) / (self.high - self.low) * (self._last - self._first)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the axis: multiples of 1, 2 or 5 times a power of ten."""
        raw = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]


def _ticks(across: _Axis, up: _Axis) -> Iterator[str]:
    for value in up.ticks():
        y = up(value)
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#9ca3af" stroke-opacity=".3"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>'
    for value in across.ticks():
        yield f'<text x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:.6g}</text>'


def _line(curve: Curve, color: str, across: _Axis, up: _Axis) -> Iterator[str]:
    every = -(-len(curve.steps) // _POINTS)
    points = [*zip(curve.steps, curve.values, strict=True)]
    kept = points[::every] + ([points[-1]] if (len(points) - 1) % every else [])
    if len(kept) == 1:
        yield f'<circle cx="{across(kept[0][0]):.1f}" cy="{up(kept[0][1]):.1f}" r="3" fill="{color}"/>'
        return
    path = "L".join(f"{across(step):.1f} {up(value):.1f}" for step, value in kept)
    yield f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.8" stroke-linejoin="round"/>'


def _legend(curves: list[Curve]) -> Iterator[str]:
    x = WIDTH - RIGHT
    for number, curve in reversed([*enumerate(curves)][:8]):
        label = curve.label if len(curve.label) <= 24 else f"{curve.label[:23]}…"
        x -= 8 * len(label) + 26
        yield f'<rect x="{x}" y="14" width="14" height="4" fill="{COLORS[number % 8]}"/>'
        yield f'<text x="{x + 19}" y="21">{_text(label)}</text>'


def _text(text: str) -> str:
    return html.escape(text)
