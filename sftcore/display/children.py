"""Lines that forked processes, such as a data loader's workers, hand to the process that draws on the terminal."""

from __future__ import annotations

import contextlib
import os

_MOST = 4096
"""Bytes that a pipe takes in one piece, whoever else writes at the same time."""


class Children:
    """A pipe. Neither side ever waits: what does not fit is written past the screen."""

    def __init__(self) -> None:
        self._ends: tuple[int, int] | None = None
        self._begun = b""

    def open(self) -> None:
        """Make it, for the processes that are forked from now on."""
        if hasattr(os, "fork"):
            self._ends = os.pipe()
            for end in self._ends:
                os.set_blocking(end, False)

    def hand_over(self, line: str) -> bool:
        """In a forked process: whether the line has been taken."""
        data = f"{line}\n".encode("utf-8", "backslashreplace")
        if self._ends is None or len(data) > _MOST:
            return False
        with contextlib.suppress(OSError):  # it is full, or nobody reads it any more
            return os.write(self._ends[1], data) == len(data)
        return False

    def lines(self) -> list[str]:
        """Those that have come since the last call."""
        if self._ends is None:
            return []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._ends[0], 65536):
                self._begun += data
        *lines, self._begun = self._begun.split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]

    def close(self) -> None:
        """Give the pipe back."""
        for end in self._ends or ():
            os.close(end)
        self._ends = None
