"""A terminal that shows what is written to it, and the command line run on one."""

from __future__ import annotations

import os
import re
import select
from pathlib import Path

from tests.commands import context

_CODE = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])")


class Terminal:
    """The screen of a terminal with all that has scrolled off it, as far as sftcore's codes go: any other is an error.

    `lines` are all lines; the screen is the last `rows` of them.
    """

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.columns, self.rows = columns, rows
        self.lines = [""]
        self.row = self.column = 0

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)

    @property
    def top(self) -> int:
        return max(len(self.lines) - self.rows, 0)

    def write(self, text: str) -> None:
        while text:
            if text[0] == "\x1b":
                code = _CODE.match(text)
                assert code, f"a code that the terminal does not know: {text[:12]!r}"
                self._obey(code[2], code[1])
                text = text[code.end() :]
                continue
            self._put(text[0])
            text = text[1:]

    def _obey(self, letter: str, number: str) -> None:
        if letter == "A":
            self.row = max(self.row - int(number or 1), self.top)
        elif letter == "K":
            self.lines[self.row] = self.lines[self.row][: self.column]
        elif letter == "J":
            self.lines[self.row] = self.lines[self.row][: self.column]
            del self.lines[self.row + 1 :]
        else:
            assert letter == "m", f"a code that the terminal does not know: {letter}"

    def _put(self, character: str) -> None:
        if character == "\n":
            self.row, self.column = self.row + 1, 0
            if self.row == len(self.lines):
                self.lines.append("")
        elif character == "\r":
            self.column = 0
        else:
            assert character.isprintable(), f"a control character: {character!r}"
            if self.column == self.columns:
                self._put("\n")
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1


def in_terminal(
    *words: str, cwd: Path, columns: int = 80, rows: int = 24, only: tuple[int, ...] = (1, 2), **environment: str
) -> tuple[int, Terminal, str]:
    """`sftcore WORDS...` on a terminal: the exit code, what it shows, and all that was written to it.

    `only` are the streams of the process that are the terminal; the others go to the files `1` and `2` in `cwd`.
    """
    import pty
    import struct
    import termios
    from fcntl import ioctl

    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    kept = {"TERM": "xterm-256color", "TQDM_DISABLE": "", "LC_ALL": "C.UTF-8", **environment}
    process = context().Process(target=_run, args=(words, cwd, kept, os.ttyname(theirs), only))
    process.start()
    written = b""
    while True:
        ready, _, _ = select.select([ours], [], [], 0.1)
        if ready:
            written += os.read(ours, 65536)
        elif not process.is_alive():
            break
    process.join()
    os.close(theirs)
    os.close(ours)
    screen, text = Terminal(columns, rows), written.decode().replace("\r\n", "\n")
    screen.write(text)
    assert process.exitcode is not None
    return process.exitcode, screen, text


def _run(words: tuple[str, ...], cwd: Path, environment: dict[str, str], terminal: str, only: tuple[int, ...]) -> None:
    import sys

    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    os.chdir(cwd)
    for number in (1, 2):
        with open(terminal if number in only else cwd / str(number), "wb") as file:
            os.dup2(file.fileno(), number)
    sys.stdin = open(os.devnull)  # noqa: SIM115  # for as long as the process lives
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False, buffering=1)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    sys.argv = ["sftcore", *words]
    from sftcore.cli import main

    main()
