"""What imported libraries hold, a million objects that live as long as the process, is spared from garbage collection.

Accelerate collects garbage at the beginning of every training run, which otherwise takes longer than the run of a tiny
model.
"""

from __future__ import annotations

import gc
import sys

_spared = 0


def spare_libraries() -> None:
    """Keep what there is out of garbage collections, if many modules were imported since this was last done."""
    global _spared
    if len(sys.modules) > _spared + 100:
        gc.collect()
        gc.freeze()
        _spared = len(sys.modules)
