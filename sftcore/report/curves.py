"""Curves of runs: which figures of a log make a chart, their points, and what is said of them in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from attrs import frozen

from sftcore.report.run import Run

POINTS = 20_000
"""Points of a curve that are drawn; of more, the lowest and the highest of each stretch are."""

_TITLES = {
    "loss": "Loss",
    "perplexity": "Perplexity",
    "mean_token_accuracy": "Token accuracy",
    "entropy": "Entropy (nats)",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens per second",
    "memory_mib": "Memory (MiB)",
}
"""The charts that come first, and what they are called. What else is logged follows under its own name."""

_NO_CHART = re.compile(
    r"step|epoch|num_tokens|num_supervised_tokens|seconds|supervised_per_second|total_flos|train_.*|tokens/.*"
    r"|.*(runtime|samples_per_second|steps_per_second|num_tokens|num_supervised_tokens)"
)
"""Figures that only grow, or say what another chart does."""


@frozen
class Curve:
    """One line of a chart: steps and finite values, both of the same length."""

    label: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


@frozen
class Chart:
    """One chart: the figure that it shows, its title, and its curves."""

    name: str
    title: str
    curves: tuple[Curve, ...]

    def summary(self) -> str:
        """What the chart shows, in a sentence for each curve.

        >>> Chart("loss", "Loss", (Curve("train", (1, 2), (3.0, 2.5)),)).summary()
        'train: from 3 at step 1 to 2.5 at step 2, lowest 2.5 at step 2, highest 3 at step 1.'
        """
        return " ".join(f"{curve.label}: {_course(curve)}." for curve in self.curves)


def charts_of(runs: Sequence[Run]) -> list[Chart]:
    """The charts of one run, or of several runs drawn into each other."""
    found: dict[str, list[Curve]] = {}
    for run in runs:
        for name, part, steps, values in _figures(run):
            label = ", ".join(filter(None, [run.name if len(runs) > 1 else "", part])) or name
            found.setdefault(name, []).append(Curve(label, *_thinned(steps, values)))
    names = [*(name for name in _TITLES if name in found), *sorted(name for name in found if name not in _TITLES)]
    return [Chart(name, _TITLES.get(name, name.replace("_", " ")), tuple(found[name])) for name in names]


def _figures(run: Run) -> Iterator[tuple[str, str, list[float], list[float]]]:
    """Each figure of a run by the chart it belongs in and the part of the chart: `train`, or a set that is evaluated.

    The losses of several sources (`loss/NAME`), and of several sets that are evaluated (`eval_NAME_loss`), share the
    chart of the loss.
    """
    points: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for entry in (*run.log, *run.speed):
        for key, value in entry.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            if _NO_CHART.fullmatch(key):
                continue
            steps, values = points.setdefault(_place(key), ([], []))
            steps.append(float(entry["step"]))
            values.append(float(value))
    for (name, part), (steps, values) in points.items():
        yield name, part, steps, values


def _place(key: str) -> tuple[str, str]:
    """The chart of a figure, and which of its curves it is.

    >>> [_place(key) for key in ("loss", "loss/gsm8k", "eval_loss", "eval_dev_loss", "eval_dev_entropy")]
    [('loss', 'train'), ('loss', 'gsm8k'), ('loss', 'eval'), ('loss', 'eval dev'), ('entropy', 'eval dev')]
    >>> _place("eval_bleu"), _place("my/figure")
    (('bleu', 'eval'), ('my/figure', 'train'))
    """
    if key.startswith("loss/"):
        return "loss", key.removeprefix("loss/")
    if not key.startswith("eval_"):
        return key, "train"
    rest = key.removeprefix("eval_")
    for name in _TITLES:
        if rest == name or rest.endswith(f"_{name}"):
            return name, " ".join(filter(None, ["eval", rest.removesuffix(name).rstrip("_")]))
    return rest, "eval"


def _thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """At most POINTS points: of each stretch of a longer curve its lowest and its highest, so that no peak is lost.

    >>> steps, values = _thinned(range(100_000), [1.0 if i == 31_337 else 0.0 for i in range(100_000)])
    >>> len(steps) <= POINTS, steps[values.index(1.0)]
    (True, 31337)
    """
    if len(steps) <= POINTS:
        return tuple(steps), tuple(values)
    size = -(-len(steps) // (POINTS // 2))
    kept: list[int] = []
    for first in range(0, len(steps), size):
        part = range(first, min(first + size, len(steps)))
        kept += sorted({min(part, key=values.__getitem__), max(part, key=values.__getitem__)})
    return tuple(steps[i] for i in kept), tuple(values[i] for i in kept)


def _course(curve: Curve) -> str:
    def point(i: int) -> str:
        return f"{curve.values[i]:.4g} at step {curve.steps[i]:g}"

    if len(curve.steps) == 1:
        return point(0)
    order = range(len(curve.values))
    lowest, highest = min(order, key=curve.values.__getitem__), max(order, key=curve.values.__getitem__)
    return f"from {point(0)} to {point(-1)}, lowest {point(lowest)}, highest {point(highest)}"
