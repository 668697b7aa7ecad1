"""Keep the libraries' bars and advice out of the way of a verb's own lines.

Both are called before the libraries are imported, and import nothing heavy: those read the environment when their turn
comes.
"""

from __future__ import annotations

import logging
import os
import sys


def no_bars() -> None:
    """No bars where stderr is no terminal, as each redraw of one would be a line; no kernels offered for download."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


def quiet() -> None:
    """No advice of the libraries either; errors stay."""
    no_bars()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
