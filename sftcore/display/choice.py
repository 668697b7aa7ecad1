"""Which view shows a run on a console."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, cast

from rich.console import Console

from sftcore.display.lines import Lines
from sftcore.display.live import Live

if TYPE_CHECKING:
    from typing import TextIO

    from sftcore.display.view import View


def view_for(console: Console, *, draws: bool) -> View | None:
    """None on a quiet console, and plain lines where nothing can be drawn, or is not to be (`draws`)."""
    if console.quiet:
        return None
    if draws and can_draw(console):
        return Live(console)
    stream = console.file
    return Lines(None if stream is sys.stdout else cast("TextIO", stream))


def can_draw(console: Console) -> bool:
    """Whether it is a terminal on which lines can be drawn anew; colours that are forced make no terminal of a file."""
    is_terminal = getattr(console.file, "isatty", None)
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return bool(is_terminal and is_terminal()) and not dumb and not console.legacy_windows
