"""Writing to streams that may be gone: a reader such as `head` that has ended, a closed terminal, a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from sftcore.util.warned import warn

_GONE = (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EBADF)


def encodable(text: str, stream: Any) -> str:
    """The text with what the stream's encoding cannot hold spelled out.

    >>> import io
    >>> encodable("a ▇", io.TextIOWrapper(io.BytesIO(), "ascii"))
    'a \\\\u2587'
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def say(text: str, stream: TextIO) -> None:
    """Write one line at once. If nothing can be written any more, say so once, and go on without."""
    put(f"{text}\n", stream)


def put(text: str, stream: TextIO) -> None:
    """The same for any text."""
    try:
        stream.write(encodable(text, stream))
        stream.flush()
    except OSError as error:
        if error.errno not in _GONE:
            raise
        _give_up(stream, error)


def _give_up(stream: Any, error: OSError) -> None:
    """Let what is written to a stream that is gone, and what it still holds, go nowhere.

    It would fail again at each flush, the last one at the end of the process.
    """
    stream, stderr = (getattr(one, "stream", one) for one in (stream, sys.stderr))
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
    if stream is not stderr:
        warn(f"stdout takes no more text ({error.strerror}); the run goes on, and its log is in its output folder.")


class Lasting:
    """A stream to which anything can be written: once it is gone, what is written goes nowhere.

    `stream` is the one that it stands for.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, and fail with nothing but what is no text."""
        try:
            return int(self.stream.write(text))
        except OSError as error:
            if error.errno not in _GONE:
                raise
            _give_up(self.stream, error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of these."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is held back."""
        try:
            self.stream.flush()
        except OSError as error:
            if error.errno not in _GONE:
                raise
            _give_up(self.stream, error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """stdout and stderr as streams that a reader which ends early, as `head` does, does not make a run fail with."""
    before = sys.stdout, sys.stderr
    mine = Lasting(before[0]), Lasting(before[1])
    sys.stdout, sys.stderr = mine
    try:
        yield
    finally:
        for one in mine:
            with contextlib.suppress(ValueError):  # it was closed
                one.flush()
        if (sys.stdout, sys.stderr) == mine:
            sys.stdout, sys.stderr = before


@contextlib.contextmanager
def stdout_alone() -> Iterator[TextIO]:
    """A stream to stdout to which nothing else is written: all others' text goes to stderr, also that of C code."""
    stdout, stderr = sys.stdout, sys.stderr
    try:
        number, others = stdout.fileno(), stderr.fileno()
    except (OSError, ValueError, AttributeError):  # stdout is an object of Python's alone, as in a test or a notebook
        with contextlib.redirect_stdout(stderr):
            yield stdout
        return
    stdout.flush()
    kept = os.dup(number)
    os.dup2(others, number)
    with os.fdopen(os.dup(kept), "w", encoding="utf-8", errors="backslashreplace") as own:
        try:
            with contextlib.redirect_stdout(stderr):
                yield own
        finally:
            with contextlib.suppress(OSError):
                stdout.flush()
            os.dup2(kept, number)
            os.close(kept)
