"""Keep the progress bars and the advice of other libraries out of a verb's output.

Both functions import nothing heavy and are called before the libraries are imported, since those read the environment
at import. Whatever they set is undone when the verb ends, so a program that calls a verb keeps its own environment.
"""

from __future__ import annotations

import logging
import os
import sys

import click

from sftcore.display.environment import bars_wanted

LOG_WIDTH = 130
"""Width of tables in characters when stdout is not a terminal."""


def no_bars(*, always: bool = False) -> bool:
    """Hide offers to download kernels, and hide progress bars: `always`, or if stderr cannot redraw them.

    Returns:
        Whether the user leaves bars on, for those that are drawn elsewhere.
    """
    wanted = bars_wanted()
    logger = logging.getLogger("bitsandbytes")
    click.get_current_context().call_on_close(lambda level=logger.level: logger.setLevel(level))
    logger.setLevel(logging.ERROR)
    if always or not sys.stderr.isatty():
        _set_for_this_verb("TQDM_DISABLE", "1")
    return wanted


def table_width() -> int | None:
    """The width for tables: the terminal's own, or where there is none, wide enough for each row to be a line."""
    return None if sys.stdout.isatty() else LOG_WIDTH


def quiet() -> None:
    """Disable progress bars, and hide everything that transformers logs except errors."""
    no_bars()
    _set_for_this_verb("TRANSFORMERS_VERBOSITY", "error")


def _set_for_this_verb(name: str, value: str) -> None:
    if name not in os.environ:
        os.environ[name] = value
        click.get_current_context().call_on_close(lambda: os.environ.pop(name, None))
