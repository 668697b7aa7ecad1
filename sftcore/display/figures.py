"""What is shown of a log, and how numbers, times and a curve are spelled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field, frozen

from sftcore.core.visible import visible

BLOCKS, LETTERS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
"""Heights of a curve that is drawn in one line, and the same where the encoding is poor."""
_POINTS = 1024
"""Values that a curve keeps at most."""
_KNOWN = {
    "loss", "grad_norm", "learning_rate", "entropy", "mean_token_accuracy", "num_tokens", "num_supervised_tokens",
    "epoch", "step", "num_input_tokens_seen", "total_flos", "train_runtime", "train_samples_per_second",
    "train_steps_per_second", "train_loss", "train_tokens_per_second",
}  # fmt: skip
_OF_EVALUATIONS = (
    "_runtime", "_samples_per_second", "_steps_per_second", "_entropy", "_num_tokens", "_num_supervised_tokens",
    "_mean_token_accuracy", "_perplexity", "_model_preparation_time", "_jit_compilation_time",
)  # fmt: skip


@frozen
class Figures:
    """A log of training.

    Attributes:
        step, max_steps: optimizer steps taken, and of how many.
        loss: of the steps since the last log.
        left: seconds to the last step, as far as it can be known.
        accuracy: of supervised tokens; None where it is not known, as whatever else.
        tokens, supervised: tokens per second of training, and those of them that the loss is computed on.
        memory: the most bytes held so far.
        learning_rate: of the last step.
        others: what else was logged, such as the loss of each source: names as they can be shown, with their values.
    """

    step: int
    max_steps: int
    loss: float
    left: float
    accuracy: float | None = None
    tokens: float | None = None
    supervised: float | None = None
    memory: int | None = None
    learning_rate: float | None = None
    others: tuple[tuple[str, str], ...] = ()

    @property
    def line(self) -> str:
        """All of it in one line."""
        parts = [f"step {self.step}/{self.max_steps}", f"loss {loss(self.loss)}"]
        if self.accuracy is not None:
            parts.append(f"accuracy {self.accuracy:.3f}")
        if self.tokens is not None and self.supervised is not None:
            parts.append(f"{self.tokens:,.0f} tokens/s ({self.supervised:,.0f} supervised)")
        if self.memory:
            parts.append(f"memory {size(self.memory)}")
        parts += [f"{name} {value}" for name, value in self.others]
        return "  ".join([*parts, f"left {duration(self.left)}"])

    @property
    def beside_loss(self) -> list[str]:
        """What is known beside the loss and how far the run is, each in a few words."""
        parts = []
        if self.accuracy is not None:
            parts.append(f"accuracy {self.accuracy:.3f}")
        if self.tokens is not None:
            parts.append(f"{self.tokens:,.0f} tokens/s")
        if self.share is not None:
            parts.append(f"{self.share:.0%} supervised")
        if self.memory:
            parts.append(f"memory {size(self.memory)}")
        if self.learning_rate is not None:
            parts.append(f"learning rate {number(self.learning_rate)}")
        return parts

    @property
    def share(self) -> float | None:
        """The part of the tokens that is supervised."""
        return self.supervised / self.tokens if self.tokens and self.supervised is not None else None


def others_in(logs: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What a log of training holds beside the figures that have a place of their own, and beside counts of tokens."""
    shown = (name for name in logs if name not in _KNOWN and not str(name).startswith("tokens/"))
    return tuple((_named(name), number(logs[name])) for name in shown)


def evaluation_in(step: int, logs: Mapping[str, Any]) -> str:
    """The line of an evaluation: its loss, or the losses of its sets, accuracy, and metrics of the run's own."""
    parts = []
    for name, value in logs.items():
        if is_evaluation_loss(name):
            accuracy = logs.get(f"{name.removesuffix('loss')}mean_token_accuracy")
            said = f", accuracy {accuracy:.3f}" if isinstance(accuracy, float) else ""
            if (perplexity := logs.get(f"{name.removesuffix('loss')}perplexity")) is not None:
                said += f", perplexity {number(perplexity)}"
            parts.append(f"{_named(name)} {loss(value)}{said}")
        elif name not in _KNOWN and not (name.startswith("eval_") and name.endswith(_OF_EVALUATIONS)):
            parts.append(f"{_named(name)} {number(value)}")
    return f"step {step}: {', '.join(parts)}" if parts else ""


def _named(name: object) -> str:
    """The name of a figure in one line."""
    return " ".join(visible(str(name)).split())


def is_evaluation_loss(name: str) -> bool:
    """Whether a figure is the loss of an evaluation, maybe of one of several sets: `eval_loss`, `eval_dev_loss`."""
    return name.startswith("eval_") and name.endswith("loss") and not name.endswith("aux_loss")


def loss(value: Any) -> str:
    """A loss with four places."""
    return f"{value:.4f}" if isinstance(value, (int, float)) else number(value)


def number(value: Any) -> str:
    """A logged value in a few characters, in one line.

    >>> number(0.123456), number(1234567.0), number("\\x1b[31m a"), number(None)
    ('0.1235', '1234567', '\\\\x1b[31m a', 'None')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return " ".join(visible(str(value)).split())[:60]
    if not math.isfinite(value) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e15):
        return f"{value:.0f}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.4f}" if isinstance(value, float) else f"{value}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(7), duration(125), duration(7265)
    ('0:07', '2:05', '2:01:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def seconds(taken: float) -> str:
    """Seconds, of a short time with their tenths.

    >>> seconds(0.42), seconds(75.3)
    ('0.4 s', '75 s')
    """
    return f"{taken:.1f} s" if taken < 10 else f"{taken:,.0f} s"


def size(count: int) -> str:
    """Bytes.

    >>> size(300 * 2**20), size(3 * 2**30)
    ('300 MiB', '3.0 GiB')
    """
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


@define
class Curve:
    """The losses of a run, of which a long one keeps means of several, since more than there are pixels is not seen.

    Attributes:
        first, lowest: of all that are finite; NaN before there is one.
    """

    first: float = math.nan
    lowest: float = math.nan
    values: list[float] = field(factory=list)
    _each: int = 1
    _begun: list[float] = field(factory=list)

    def add(self, value: float) -> None:
        """The next one; NaN and Inf have no place in a curve."""
        if not math.isfinite(value):
            return
        self.first = self.first if math.isfinite(self.first) else value
        self.lowest = value if math.isnan(self.lowest) else min(self.lowest, value)
        self._begun.append(value)
        if len(self._begun) == self._each:
            self.values.append(sum(self._begun) / self._each)
            self._begun = []
        if len(self.values) == _POINTS:
            self.values = [sum(pair) / 2 for pair in zip(self.values[::2], self.values[1::2], strict=True)]
            self._each *= 2


def sparkline(values: Sequence[float], width: int, heights: str = BLOCKS) -> str:
    """A curve in one line of at most so many characters, each of which is the mean of as many values.

    >>> sparkline([3.0, 2.0, 1.0], 10), sparkline([4.0, 2.0, 2.0, 0.0], 2), sparkline([1.0, 1.0], 5)
    ('█▅▁', '█▁', '▁▁')
    """
    count = min(len(values), width)
    means = []
    for place in range(count):
        part = values[place * len(values) // count : (place + 1) * len(values) // count]
        means.append(sum(part) / len(part))
    if not means:
        return ""
    low, span = min(means), max(means) - min(means)
    last = len(heights) - 1
    return "".join(heights[round((value - low) / span * last) if span > 0 else 0] for value in means)
