"""A few lines at the bottom of a terminal that are drawn anew as a run goes on, above which all other text scrolls.

The cursor is never hidden and stands below the lines, so that the terminal is in order whenever and however the process
ends. There is no thread: what is drawn is drawn when something happens.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from sftcore.display.children import Children
from sftcore.display.streams import encodable, put

OFTEN = 0.25
"""Seconds between two drawings, if nothing asks for one at once."""
_SPELLED = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\t"}
_STYLE = re.compile("(\x1b\\[[0-9;:]*m)")
_UNSET = "\x1b[0m"
_open: list[Screen] = []


def interrupted(text: str) -> bool:
    """Whether a line could be shown above the lines of a screen, at any moment, also from a signal's handler."""
    return bool(_open) and _open[-1].interrupted(text)


class Screen:
    """The lines, on the terminal of a console. While it is open, it takes over the streams that go to a terminal.

    Text of other threads may come at any time; that of processes forked from this one, such as a loader's workers, is
    handed over.
    """

    def __init__(self, console: Console) -> None:
        # what styles the lines writes nowhere, as the console would write to what is taken over
        self._ink = Console(
            file=io.StringIO(),
            force_terminal=True,
            color_system=console.color_system,  # type: ignore[arg-type]
            no_color=console.no_color,
            legacy_windows=False,
            width=10_000,
        )
        self._stream: Any = getattr(console.file, "stream", console.file)
        self._lines: Sequence[str] = ()
        self._children = Children()
        self._shown: Sequence[str] = ()
        self._drawn_at = self._begun_at = 0.0
        self._busy = False
        self._late: list[str] = []
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._above: list[_Above] = []
        self._handlers: list[tuple[Any, Any]] = []

    @property
    def is_open(self) -> bool:
        """Whether the streams are taken over."""
        return self in _open

    @property
    def width(self) -> int:
        """Characters of a line: one less than fit, because a terminal may begin a new line behind the last one."""
        return max(self._size()[0] - 1, 10)

    def _size(self) -> tuple[int, int]:
        with contextlib.suppress(OSError, ValueError):
            columns, rows = os.get_terminal_size(self._stream.fileno())
            if columns and rows:
                return columns, rows
        return 80, 24

    def open(self) -> None:
        """Take over what else writes to the terminal."""
        if self.is_open:
            return
        _open.append(self)
        self._children.open()
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if _is_terminal(stream):
                self._above.append(above := _Above(stream, self))
                setattr(sys, name, above)
        self._handlers = list(_moved_handlers(self._above))

    def close(self) -> None:
        """Leave the lines where they are, and give the streams back."""
        if not self.is_open:
            return
        self._take_from_children()
        for above in self._above:
            above.finish()
        self.draw(self._lines)
        for handler, stream in self._handlers:
            handler.stream = stream
        for above in self._above:
            for name in ("stdout", "stderr"):
                if getattr(sys, name) is above:
                    setattr(sys, name, above.stream)
        self._above, self._handlers, self._shown = [], [], ()
        _open.remove(self)
        self._children.close()

    def is_due(self) -> bool:
        """Whether it is time to draw again; what processes of this one have printed is shown then."""
        if time.monotonic() - self._drawn_at < OFTEN:
            return False
        self._take_from_children()
        return True

    def _take_from_children(self) -> None:
        if lines := self._children.lines():
            self.print(*lines)

    def draw(self, lines: Iterable[Text | str]) -> None:
        """Show these lines instead of those that are shown; what does not fit is left out."""
        self._drawn_at = time.monotonic()
        self._lines = [one if isinstance(one, str) else self._styled(one) for one in lines]
        self._show("")

    def print(self, *lines: str) -> None:
        """Show lines above, which scroll away as all text does; control characters are spelled out."""
        self._show("".join(f"{_safe(line)}\n" for line in lines))

    def interrupted(self, text: str) -> bool:
        """The same from the handler of a signal, which may have come while something is being written."""
        if os.getpid() != self._process or not isinstance(sys.stderr, _Above):
            return False
        if self._busy:
            self._late.append(text)
        else:
            self.print(text)
        return True

    def printed(self, lines: Sequence[str]) -> None:
        """Lines of another, and maybe one that has only begun."""
        if lines:
            self.print(*lines)
        elif (now := time.monotonic()) - self._begun_at >= OFTEN:
            self._begun_at = now
            self._show("")

    def from_child(self, line: str) -> bool:
        """Whether a line of a process that was forked from this one could be handed to it."""
        return self._children.hand_over(line)

    def _show(self, above: str) -> None:
        rest = [self._styled(Text(_bare(text))) for one in self._above if (text := one.begun)]
        shown = [*self._lines, *rest][: max(self._size()[1] - 1, 1)]
        text = "".join(f"{line}\n" for line in shown)
        with self._lock:
            self._busy = True
            try:
                put(f"{self._up()}\x1b[J{above}{text}", self._stream)
                self._shown = shown
            finally:
                self._busy = False
        while self._late:
            self.print(self._late.pop(0))

    def _up(self) -> str:
        """To the first line that is shown; in a terminal that has become narrower each may have become several."""
        columns = self._size()[0]
        height = sum(max(-(-cell_len(_bare(line)) // columns), 1) for line in self._shown)
        return f"\r\x1b[{height}A" if height else "\r"

    def _styled(self, text: Text) -> str:
        """A line with its colours, cut to the width."""
        text = text.copy()
        text.truncate(self.width, overflow="ellipsis")
        with self._ink.capture() as captured:
            self._ink.print(text, end="", soft_wrap=True, highlight=False)
        return encodable(captured.get(), self._stream)


class _Above:
    """A stream of which each whole line is shown above a screen's lines, and one that has only begun below them."""

    def __init__(self, stream: Any, screen: Screen) -> None:
        self.stream = stream
        self.begun = ""
        self._screen, self._process = screen, os.getpid()
        self._child = 0
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Keep what is no whole line yet; of text that is written over itself, as a bar is, the newest remains."""
        if not isinstance(text, str):  # by which others find out whether a stream takes text
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if not self._screen.is_open:
            return int(self.stream.write(text))
        if os.getpid() != self._process:
            return self._write_in_child(text)
        if text:
            with self._lock:
                lines = self._whole(text)
            self._screen.printed(lines)
        return len(text)

    def _whole(self, text: str) -> list[str]:
        *lines, begun = (self.begun + text).split("\n")
        self.begun = _newest(begun)
        return [_newest(line) for line in lines]

    def _write_in_child(self, text: str) -> int:
        """Hand whole lines to the process that draws. The lock may be held by a thread that this process has not."""
        if self._child != os.getpid():
            self._child, self.begun = os.getpid(), ""
        for line in self._whole(text):
            if not self._screen.from_child(line):
                self.stream.write(f"{line}\n")
                self.stream.flush()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of these."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing is held back but a line that has only begun."""
        if not self._screen.is_open:
            self.stream.flush()

    def finish(self) -> None:
        """Show what is left."""
        with self._lock:
            begun, self.begun = self.begun, ""
        if begun:
            self._screen.print(begun)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _newest(line: str) -> str:
    """What is seen of a line in which carriage returns let the text behind them be written over that before."""
    if "\r" not in line:
        return line
    seen = ""
    for part in line.split("\r"):
        seen = part + seen[len(part) :]
    return seen.rstrip()


def _safe(line: str) -> str:
    """A line in which nothing but its colours steers the terminal.

    >>> _safe("\\x1b[31mred\\x1b[2Jcleared")
    '\\x1b[31mred\\\\x1b[2Jcleared\\x1b[0m'
    """
    parts = _STYLE.split(line)
    parts[::2] = [part.translate(_SPELLED) for part in parts[::2]]
    return "".join([*parts, *([_UNSET] if len(parts) > 1 else [])])


def _bare(line: str) -> str:
    """A line without colours and control characters."""
    return _STYLE.sub("", line).translate(_SPELLED)


def _is_terminal(stream: Any) -> bool:
    with contextlib.suppress(Exception):  # anything may stand in place of a stream
        return bool(stream.isatty())
    return False


def _moved_handlers(taken: Iterable[_Above]) -> Iterator[tuple[Any, Any]]:
    """The log handlers that write to one of these streams, each with its stream, now with what stands for that."""
    instead = {}
    for above in taken:
        stream = above.stream
        while stream is not None:
            instead[id(stream)] = above
            stream = getattr(stream, "stream", None)
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = {id(one): one for logger in loggers for one in getattr(logger, "handlers", ())}
    for handler in handlers.values():
        stream = getattr(handler, "stream", None)
        if stream is not None and id(stream) in instead:
            handler.stream = instead[id(stream)]
            yield handler, stream
