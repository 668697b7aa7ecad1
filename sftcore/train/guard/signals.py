"""SIGTERM and SIGINT during training: the step in progress ends, a checkpoint is saved, and StoppedBySignal is raised.

In Python it is a KeyboardInterrupt for SIGINT, which notebooks and scripts catch, and a SystemExit for SIGTERM. On the
command line the exit code is 128 and the signal's number, as a shell has it: 143 for SIGTERM, 130 for SIGINT. A second
signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from attrs import define, field

from sftcore.util.launched import is_launched, is_told

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME_SECONDS = 1.0
_NOT_TRAINING = "It was not training; resume_from_checkpoint=auto resumes from a checkpoint if there is one"


class StoppedBySignal(BaseException):
    """Training was stopped by a signal; `step` says where, `checkpoint` where it was saved (None: nothing was)."""

    number: int
    step: int
    checkpoint: str | None


class StoppedByInterrupt(StoppedBySignal, KeyboardInterrupt):
    """By SIGINT."""


class StoppedByTermination(StoppedBySignal, SystemExit):
    """By SIGTERM."""


def stopped_by(number: int, *, step: int = 0, checkpoint: str | None = None) -> StoppedBySignal:
    """The exception for a signal: a KeyboardInterrupt, or a SystemExit with its exit code.

    >>> isinstance(stopped_by(signal.SIGINT), KeyboardInterrupt), stopped_by(signal.SIGTERM).code
    (True, 143)
    """
    is_interrupt = number == signal.SIGINT
    found: StoppedBySignal = StoppedByInterrupt() if is_interrupt else StoppedByTermination(exit_code(number))
    found.number, found.step, found.checkpoint = number, step, checkpoint
    return found


class EvaluationLeft(Exception):
    """A signal came during an evaluation within training."""


def exit_code(number: int) -> int:
    """The exit code of a process that a signal has stopped.

    >>> exit_code(signal.SIGTERM), exit_code(signal.SIGINT)
    (143, 130)
    """
    return 128 + int(number)


@define
class Listener:
    """Remembers the first signal of a training run; `received` is its number, 0 before.

    `saves` says whether a checkpoint will be saved, for what is printed.
    """

    saves: bool = True
    received: int = 0
    _since: float = 0.0
    _process: int = field(factory=os.getpid)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals, and give them back to whoever had them; outside the main thread nothing is done."""
        self.received = 0
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._take) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                # None: it was not set from Python, and cannot be set back from it
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _take(self, number: int, frame: FrameType | None) -> Any:
        if os.getpid() != self._process:  # a process forked from this one, such as a loader's worker
            if number == signal.SIGTERM:
                _die(number)
            return
        if not self.received:
            self.received, self._since = number, time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                saved = "finished and saved" if self.saves else 'finished (save_strategy is "no": nothing is saved)'
                _say(f"{signal.Signals(number).name}: the step in progress is {saved}; send it again to stop at once")
            if not is_launched():
                # from now on the system ends the process, also where it is deep in C code
                for one in SIGNALS:
                    signal.signal(one, signal.SIG_DFL)
        elif time.monotonic() - self._since > _SAME_SECONDS:  # a launcher passes on what its group was sent too
            _die(number)


@contextlib.contextmanager
def exits_cleanly() -> Iterator[None]:
    """Around a verb of the command line: signals end it with one line and the documented exit code, also outside
    training, where SIGTERM unwinds as SIGINT does.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            _die(number)
        raise stopped_by(number)

    process = os.getpid()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except StoppedBySignal as stopped:
        if not stopped.step:
            _say(f"stopped by {signal.Signals(stopped.number).name}. {_NOT_TRAINING}")
        raise SystemExit(exit_code(stopped.number)) from None
    except KeyboardInterrupt:
        _say(f"stopped by SIGINT. {_NOT_TRAINING}")
        raise SystemExit(exit_code(signal.SIGINT)) from None
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def how_to_continue(number: int, step: int, checkpoint: str | None) -> None:
    """Say where the run stands and how it is resumed."""
    resumed = (
        'Nothing was saved, because save_strategy is "no"'
        if checkpoint is None
        else f"Resume with resume_from_checkpoint={checkpoint} (or auto)"
    )
    _say(f"stopped by {signal.Signals(number).name} after step {step}. {resumed}")


def _die(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _say(text: str) -> None:
    if is_told():  # a launcher ends the others where one process has failed
        return
    screen = sys.modules.get("sftcore.display.screen")  # which is imported where one is drawn
    if screen is not None and screen.interrupted(text):
        return
    # print could be what the signal has interrupted
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{text}\n".encode())
