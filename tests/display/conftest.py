"""Terminals that a test's own process writes to."""

from __future__ import annotations

import io
import os
import pty
import struct
import sys
import termios
from fcntl import ioctl

import pytest
from rich.console import Console

from tests.display.terminals import Terminal


class Written(io.StringIO):
    """What is written to a terminal of this size, of which `number` is a real one."""

    encoding = "utf-8"

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number


class OneTerminal:
    """stdout and stderr of this process as one terminal."""

    def __init__(self, stream: Written, columns: int, rows: int) -> None:
        self.stream, self._size = stream, (columns, rows)

    @property
    def console(self) -> Console:
        return Console()

    @property
    def screen(self) -> Terminal:
        shown = Terminal(*self._size)
        shown.write(self.stream.getvalue())
        return shown

    @property
    def text(self) -> str:
        return self.screen.text


@pytest.fixture
def terminal(monkeypatch):
    """Make stdout and stderr a terminal: `terminal(columns, rows)`."""
    numbers = []
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    def make(columns: int = 80, rows: int = 24) -> OneTerminal:
        numbers[:] = pty.openpty()
        ioctl(numbers[1], termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        stream = Written(numbers[1])
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        return OneTerminal(stream, columns, rows)

    yield make
    for number in numbers:
        os.close(number)
