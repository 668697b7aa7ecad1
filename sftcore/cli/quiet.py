"""Keep the libraries' bars and advice out of the way of a verb's own lines."""

from __future__ import annotations

import logging
import os
import sys


def quiet() -> None:
    """No bars where stderr is no terminal, no advice of the libraries; errors stay. Call it before they are imported.

    Nothing heavy is imported here: the libraries read the environment when their turn comes.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it offers kernels to download
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
