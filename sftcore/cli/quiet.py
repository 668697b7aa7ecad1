"""Keep the libraries' bars and advice out of the way of a verb's own lines.

Both are called before the libraries are imported, and import nothing heavy: those read the environment when their turn
comes. What they set ends with the verb, so that a program that calls a verb keeps its own environment.
"""

from __future__ import annotations

import logging
import os
import sys

import click


def no_bars() -> None:
    """Show no bars where stderr is not a terminal (each redraw would be a line), and offer no kernels for download."""
    logger = logging.getLogger("bitsandbytes")
    click.get_current_context().call_on_close(lambda level=logger.level: logger.setLevel(level))
    logger.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        _set_for_this_verb("TQDM_DISABLE", "1")


def quiet() -> None:
    """Show none of the libraries' advice either; errors stay."""
    no_bars()
    _set_for_this_verb("TRANSFORMERS_VERBOSITY", "error")


def _set_for_this_verb(name: str, value: str) -> None:
    if name not in os.environ:
        os.environ[name] = value
        click.get_current_context().call_on_close(lambda: os.environ.pop(name, None))
