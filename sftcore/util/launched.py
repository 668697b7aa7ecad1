"""This process as one of several that a launcher has started: it ends with the launcher, and an error is told once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

LAUNCHER = "SFTCORE_LAUNCHER"
"""The environment variable with the process number of our own launcher."""
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""torch's launcher tells each process where to write what went wrong: DIR/attempt_N/RANK/error.json."""
_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""
_SECONDS = 0.5
_GRACE = 2.0
_watched = False


def is_launched() -> bool:
    """Whether a launcher has started this process, for several or for one."""
    size = os.environ.get("WORLD_SIZE") or "1"
    return "TORCHELASTIC_RUN_ID" in os.environ or (size.isdigit() and int(size) > 1)


def end_with_launcher() -> None:
    """Have this process killed as soon as its launcher has ended, once; a process that nobody launched is left alone.

    One that trained on would write into the folder of the run that is started in its place. It is killed, and does not
    save: what it would save is no part of the new run, and a save that is cut off leaves nothing.
    """
    global _watched
    if _watched or not is_launched():
        return
    _watched = True
    # not for the processes that this one starts, whose parent is another
    launcher = os.environ.pop(LAUNCHER, "")
    parent = int(launcher) if launcher.isdigit() else os.getppid()
    # the signal comes when the thread ends that has started this process: of torch's launcher that is the main one
    if not (sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ and _signalled()):
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="sftcore-launcher").start()
    if os.getppid() != parent or (not launcher and _adopted()):  # it has ended before the signal was asked for
        _end()


def claim(text: str) -> bool:
    """Whether this is the first process of the launch to end with an error; torch's launcher is given the text."""
    if (folder := _folder()) is None:
        return True
    # an error that all have is told by the first, behind what that one has said before
    deadline = time.monotonic() + (_GRACE if os.environ.get("LOCAL_RANK", "0") != "0" else 0.0)
    while time.monotonic() < deadline and not is_told():
        time.sleep(0.02)
    try:
        os.close(os.open(folder / "told", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    except OSError:
        return True
    extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
    with contextlib.suppress(OSError):
        Path(os.environ[_ERROR_FILE]).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}))
    return True


def is_told() -> bool:
    """Whether a process of this launch has told an error, so that what others say after it is not the cause."""
    folder = _folder()
    return folder is not None and (folder / "told").exists()


def _folder() -> Path | None:
    given = os.environ.get(_ERROR_FILE)
    folder = Path(given).parent.parent if given else None
    return folder if folder is not None and folder.is_dir() else None


def _signalled() -> bool:
    import ctypes

    try:
        return bool(ctypes.CDLL(None).prctl(_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def _adopted() -> bool:
    """Whether the parent is the system's first process, and not torch's launcher, as it may be in a container."""
    if os.getppid() != 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    import psutil

    try:
        return "python" not in psutil.Process(1).exe()
    except psutil.Error:
        return True


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    _end()


def _end() -> None:
    if sys.platform == "win32":
        os._exit(1)
    os.kill(os.getpid(), signal.SIGKILL)
