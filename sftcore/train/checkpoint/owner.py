"""One run at a time writes to an output folder.

The folder holds a file that says which process writes there. It is made in one step (O_EXCL), which also works on file
systems without locks, and its time is set again every few seconds, which tells other machines that its process lives.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from attrs import asdict, frozen

from sftcore.core.errors import ConflictError
from sftcore.util.disk import writing
from sftcore.util.warned import warn

LOCK = "_run.lock"
"""transformers does not upload files whose names begin so."""
BEAT = 10.0
"""Seconds between two signs of life."""
SILENT = 6 * BEAT
"""After so many seconds without one, a process that cannot be looked for counts as ended."""
ORPHAN_WAIT = 15.0
"""How many seconds a new run waits for processes whose launcher has ended, and which are about to end themselves."""


@frozen
class Owner:
    """A process that writes to a folder.

    Attributes:
        pid: its number; started: when it began, in seconds since 1970, as a number may be given again.
        host: its machine; space: the machine's start and the process's namespace, in which its number means something.
        since: when it began to write, as text.
        parent: the number and the start of its launcher.
    """

    pid: int
    started: float
    host: str
    space: str
    since: str = ""
    parent: tuple[int, float] | None = None

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        parent = psutil.Process().parent()
        return cls(
            os.getpid(),
            psutil.Process().create_time(),
            socket.gethostname(),
            _space(),
            time.strftime("%Y-%m-%d %H:%M:%S %z"),
            (parent.pid, parent.create_time()) if parent is not None else None,
        )

    @property
    def is_near(self) -> bool:
        """Whether it can be looked for here."""
        return (self.host, self.space) == (socket.gethostname(), _space())

    @property
    def is_orphan(self) -> bool:
        """Whether its launcher has ended."""
        return self.is_near and self.parent is not None and not _runs(*self.parent)

    def lives(self, seconds_silent: float) -> bool:
        """Whether it still runs, as far as that can be known."""
        return _runs(self.pid, self.started) if self.is_near else seconds_silent < SILENT

    def __str__(self) -> str:
        since = f", since {self.since}" if self.since else ""
        return f"process {self.pid} on {self.host}{since}"


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """A context in which this process is the one that writes to the folder; it may be entered again inside.

    Raises:
        ConflictError: another process writes there.
        WriteError: the folder cannot be written to.
    """
    folder = folder.resolve()
    if folder in _OURS:
        yield
        return
    with writing("output_dir", folder):
        folder.mkdir(parents=True, exist_ok=True)
        content = _take(folder)
    _OURS.add(folder)
    over = threading.Event()
    beats = threading.Thread(target=_beat, args=(folder / LOCK, over), daemon=True, name="sftcore-run-lock")
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()
        _OURS.discard(folder)
        with contextlib.suppress(OSError):
            if (folder / LOCK).read_text(encoding="utf-8") == content:
                (folder / LOCK).unlink()


def refuse_owned(folder: Path) -> None:
    """Refuse a folder in which another process writes now, before anything is loaded.

    Raises:
        ConflictError: another process writes there.
    """
    owner = _parsed(_read(folder / LOCK))
    if os.environ.get("RANK", "0") != "0":  # the first process of this launch may have begun to write
        return
    if owner is not None and owner.pid != os.getpid() and owner.lives(_silence(folder / LOCK)):
        if owner.is_orphan and _ends_soon(owner):
            return
        raise _refusal(folder, owner)


def is_owned(folder: Path) -> bool:
    """Whether a process that lives writes to a folder."""
    owner = _parsed(_read(folder / LOCK))
    return owner is not None and owner.lives(_silence(folder / LOCK))


_OURS: set[Path] = set()


def _take(folder: Path) -> str:
    """Make the lock, whose content is given back; that of a process that has ended is replaced, which is said."""
    lock, own = folder / LOCK, Owner.here()
    content = json.dumps({**asdict(own), "token": uuid.uuid4().hex})
    while True:
        try:
            with open(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "w", encoding="utf-8") as file:
                file.write(content)
            return content
        except FileExistsError:
            found = _read(lock)
        owner = _parsed(found)
        if owner is not None and owner.lives(_silence(lock)) and not (owner.is_orphan and _ends_soon(owner)):
            raise _refusal(folder, owner)
        if owner is None and found is not None and _silence(lock) < BEAT:  # it is being written
            time.sleep(0.05)
            continue
        if _remove_stale(lock, found) and owner is not None:
            warn(f"{folder}: the run of {owner} ended without a word; this one takes its place")


def _remove_stale(lock: Path, found: str | None) -> bool:
    """Remove a lock that was found stale, and no other that has taken its place since; whether it was removed here.

    One process at a time looks again and removes: while the stale lock is there, nobody can make another.
    """
    if lock.is_dir() and not lock.is_symlink():  # nobody's lock
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(lock))
    guard = lock.with_name(f"{lock.name}.removing")
    try:
        os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        if _silence(guard) > BEAT:  # left by a process that was killed within these lines
            guard.unlink(missing_ok=True)
        time.sleep(0.02)
        return False
    try:
        if not os.path.lexists(lock) or _read(lock) != found:
            return False
        lock.unlink()
        return True
    finally:
        guard.unlink(missing_ok=True)


def _ends_soon(owner: Owner) -> bool:
    deadline = time.monotonic() + ORPHAN_WAIT
    while _runs(owner.pid, owner.started):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _refusal(folder: Path, owner: Owner) -> ConflictError:
    return ConflictError(
        f"another run writes to this folder: {owner}.",
        where=f"output_dir {folder}",
        fix="Name another output_dir, or wait until that run has ended."
        if owner.is_near
        else f"Name another output_dir, or wait until that run has ended; if it has, remove {folder / LOCK}.",
    )


def _read(lock: Path) -> str | None:
    try:
        return lock.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _parsed(text: str | None) -> Owner | None:
    try:
        facts: Mapping[str, Any] = json.loads(text or "")
        kept = {key: value for key, value in facts.items() if key != "token"}
        found = Owner(**{**kept, "parent": tuple(kept["parent"]) if kept.get("parent") else None})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    numbered = [(found.pid, found.started), *([found.parent] if found.parent else [])]
    fits = all(
        len(one) == 2 and type(one[0]) is int and one[0] > 0 and isinstance(one[1], (int, float)) for one in numbered
    )
    return found if fits and isinstance(found.host, str) and isinstance(found.space, str) else None


def _beat(lock: Path, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(lock)


def _silence(lock: Path) -> float:
    """Seconds since the lock's last sign of life, by the clock of the file system, which other machines share."""
    probe = lock.with_name(f"{lock.name}-{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime - lock.stat().st_mtime
    except OSError:
        return 0.0
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _runs(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        # the time is rounded differently where the clock was set since
        return bool(abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _space() -> str:
    """What tells apart two machines, or two containers, in which the same number is another process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return str(int(psutil.boot_time()) // 10)
