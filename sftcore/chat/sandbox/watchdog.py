"""Foreign code that runs in this process, stopped from outside when it takes too long or too much memory.

A signal would do for the main thread alone and belong to the user; a process of its own for each rendering would cost
more than the rendering. So a thread looks on, a few times a second and only while something runs, and raises an
exception in the thread that runs it (PyThreadState_SetAsyncExc). It is heard between two steps of Python code, so no
single step may take long: see sftcore.chat.sandbox.environment.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import attrs

SECONDS = 3.0
"""Of the thread's processor time, so that a busy machine stops nobody; of wall time where that is not known."""
LONGEST = 30.0
"""Seconds of wall time, however busy the machine is."""
MEBIBYTES = 1024
"""How much the process may grow during one call that lasts longer than a glance."""
GLANCE = 0.1
_IDLE = 20
"""Glances without work after which the thread ends; the next call starts another."""


class StoppedError(BaseException):
    """Raised inside what is stopped: no Exception, or the foreign code could catch it."""


class Calls:
    """What runs in one thread. `serial` is odd while something does, and another number each time."""

    __slots__ = ("__weakref__", "clock", "reason", "serial", "thread")

    def __init__(self) -> None:
        self.serial = 0
        self.reason = ""
        self.thread = threading.get_ident()
        get_clock: Callable[[int], int] | None = getattr(time, "pthread_getcpuclockid", None)
        self.clock = None if get_clock is None else get_clock(self.thread)

    def seconds(self) -> float:
        """The thread's processor time; wall time where that is not known."""
        return time.monotonic() if self.clock is None else time.clock_gettime(self.clock)

    def end(self) -> None:
        """It has ended: called in a `finally`."""
        self.serial += 1
        if self.reason:
            self._withdraw()

    def stopped(self) -> str:
        """Why it was stopped: called where StoppedError is caught, outside of that `finally`."""
        self.serial += self.serial % 2  # the exception may have come between the last step and `end`
        reason = self.reason or "it took too long"
        self._withdraw()
        return reason

    def _withdraw(self) -> None:
        """Take back an exception that the call did not live to see."""
        with _lock:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread), None)


_here = threading.local()
_known: weakref.WeakSet[Calls] = weakref.WeakSet()
_thread: threading.Thread | None = None
_lock = threading.Lock()


def begin() -> Calls:
    """Foreign code begins to run in this thread; none runs there already.

    The caller ends it, and is told by StoppedError that it was stopped:

        calls = begin()
        try:
            try:
                foreign()
            finally:
                calls.end()
        except StoppedError:
            raise SomeError(calls.stopped())
    """
    try:
        calls: Calls = _here.calls
    except AttributeError:
        calls = _here.calls = Calls()
        with _lock:
            _known.add(calls)
    calls.reason = ""
    calls.serial += 1
    if _thread is None:
        _start()
    return calls


# --- The thread -----------------------------------------------------------------------------------------------------
def _start() -> None:
    global _thread
    with _lock:
        if _thread is None:
            _thread = threading.Thread(target=_watch, name="sftcore-watchdog", daemon=True)
            _thread.start()


def _watch() -> None:
    global _thread
    own = threading.current_thread()
    seen: dict[int, _Look] = {}
    idle = 0
    while True:
        time.sleep(GLANCE)
        running = _running()
        seen = {one.thread: _looked_at(one, seen.get(one.thread)) for one in running}
        idle = 0 if running else idle + 1
        if idle < _IDLE:
            continue
        _thread = None  # first, so that a call that begins now either starts another thread or is seen below
        if not _running():
            return
        if _took_over(own):
            return


def _took_over(own: threading.Thread) -> bool:
    """Whether another thread watches by now; else this one goes on."""
    global _thread
    with _lock:
        _thread = _thread or own
        return _thread is not own


def _running() -> list[Calls]:
    with _lock:
        return [one for one in _known if one.serial % 2]


@attrs.frozen
class _Look:
    """A call as it was first seen: the thread's seconds, the process's MiB, the time; and when it was stopped."""

    serial: int
    seconds: float
    mebibytes: float
    began: float = attrs.field(factory=time.monotonic)
    stopped: float | None = None


def _looked_at(calls: Calls, before: _Look | None) -> _Look:
    serial = calls.serial
    try:
        seconds = calls.seconds()
    except OSError:  # the thread has ended
        return _Look(serial, 0.0, 0.0)
    if before is None or before.serial != serial:
        return _Look(serial, seconds, _mebibytes())
    now = time.monotonic()
    if before.stopped is not None and now - before.stopped < 1:
        return before  # it is about to hear of it
    if seconds - before.seconds > SECONDS or now - before.began > LONGEST:
        return _stop(calls, before, now, f"it took longer than {SECONDS:g} s")
    if _mebibytes() - before.mebibytes > MEBIBYTES:
        return _stop(calls, before, now, f"it took more than {MEBIBYTES:,} MiB of memory")
    return before


def _stop(calls: Calls, look: _Look, now: float, reason: str) -> _Look:
    with _lock:
        if calls.serial == look.serial:
            calls.reason = reason
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(calls.thread), ctypes.py_object(StoppedError))
    return attrs.evolve(look, stopped=now)


def _mebibytes() -> float:
    """Memory of this process in MiB: resident, or its peak where the system does not tell the former; else 0."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if os.uname().sysname == "Darwin" else 2**10)


def _forget() -> None:
    """In a forked process only the thread that forked is left."""
    global _here, _known, _thread, _lock
    _here, _known, _thread, _lock = threading.local(), weakref.WeakSet(), None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
