"""SIGTERM and SIGINT during training: the step in progress ends, a checkpoint is saved, the process exits.

The exit code is 128 and the signal's number, as a shell has it: 143 for SIGTERM, 130 for SIGINT. A second signal ends
the process at once.
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

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME_SECONDS = 1.0
_NOT_TRAINING = "It was not training; resume_from_checkpoint=auto goes on where there is a checkpoint"


class StoppedBySignal(SystemExit):
    """Training was stopped by a signal and can go on; `step` and `checkpoint` say from where."""

    def __init__(self, number: int, *, step: int = 0, checkpoint: str | None = None) -> None:
        self.number, self.step, self.checkpoint = number, step, checkpoint
        super().__init__(exit_code(number))


def exit_code(number: int) -> int:
    """The exit code of a process that a signal has stopped.

    >>> exit_code(signal.SIGTERM), exit_code(signal.SIGINT)
    (143, 130)
    """
    return 128 + int(number)


@define
class Listener:
    """Remembers the first signal of a training run; `received` is its number, 0 before."""

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
                _say(f"{signal.Signals(number).name}: the step in progress ends and is saved; once more ends at once")
            if not _launched():
                # from now on the system ends the process, also where it is deep in C code
                for one in SIGNALS:
                    signal.signal(one, signal.SIG_DFL)
        elif time.monotonic() - self._since > _SAME_SECONDS:  # a launcher passes on what its group was sent too
            _die(number)


@contextlib.contextmanager
def exits_cleanly() -> Iterator[None]:
    """Outside training: SIGTERM unwinds as SIGINT does, and both end with one line and the documented exit code."""

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            _die(number)
        raise StoppedBySignal(number)

    process = os.getpid()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except KeyboardInterrupt:
        _say(f"stopped by SIGINT. {_NOT_TRAINING}")
        raise StoppedBySignal(signal.SIGINT) from None
    except StoppedBySignal as stopped:
        if stopped.checkpoint is None:
            _say(f"stopped by {signal.Signals(stopped.number).name}. {_NOT_TRAINING}")
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def how_to_go_on(number: int, step: int, checkpoint: str) -> None:
    """Say where the run stands and how it goes on."""
    _say(
        f"stopped by {signal.Signals(number).name} after step {step}. Go on with resume_from_checkpoint={checkpoint} "
        "(or auto)"
    )


def _launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1


def _die(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _say(text: str) -> None:
    # print could be what the signal has interrupted
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{text}\n".encode())
