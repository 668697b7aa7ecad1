"""How long a run has trained, without its evaluations and saves, and how fast."""

from __future__ import annotations

import time


class TrainingClock:
    """Seconds of training alone: what lies between the end of a step and an evaluation's or a save's is taken out."""

    def __init__(self) -> None:
        self._start = self._step_ended = time.monotonic()
        self._paused = 0.0
        self._then = (0.0, 0.0, 0.0)

    def begin(self, tokens: float = 0.0, supervised: float = 0.0) -> None:
        """Start at zero; tokens that a resumed run counted before are not its own."""
        self._start = self._step_ended = time.monotonic()
        self._paused, self._then = 0.0, (0.0, tokens, supervised)

    def step(self) -> None:
        """A step has ended."""
        self._step_ended = time.monotonic()

    def pause(self) -> None:
        """An evaluation or a save has ended: its time does not count."""
        now = time.monotonic()
        self._paused += now - self._step_ended
        self._step_ended = now

    def seconds(self) -> float:
        """Seconds of training so far."""
        return time.monotonic() - self._start - self._paused

    @property
    def seconds_of_steps(self) -> float:
        """The same to the end of the last step: what came behind it is no training."""
        return self._step_ended - self._start - self._paused

    def speed(self, tokens: float, supervised: float) -> tuple[float, float]:
        """Tokens and supervised tokens per second since this was last asked."""
        now, (then, tokens_then, supervised_then) = self.seconds(), self._then
        self._then = (now, tokens, supervised)
        spent = max(now - then, 1e-9)
        return (tokens - tokens_then) / spent, (supervised - supervised_then) / spent
