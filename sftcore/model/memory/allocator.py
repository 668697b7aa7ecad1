"""Memory of a run on a CPU, where glibc's heap would hold on to what a step has freed.

Activations of some megabytes, freed in another order than they were made, leave holes that glibc cannot give back, and
by its own rule it takes ever larger blocks from that heap. Blocks from 4 MiB on are asked of the system here, which has
them back when they are freed. Mapping them anew each time costs a quarter of the speed, so only packed runs, whose rows
are all as long as they may be, do so.
"""

from __future__ import annotations

import ctypes
import os
import platform

M_MMAP_THRESHOLD = -3
"""glibc's number of the limit from which a block is mapped on its own."""
LIMIT = 4 * 2**20
"""That limit in bytes; glibc raises its own up to 32 MiB as blocks are freed."""
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""With one of these a user has chosen another way."""


def give_back_large_blocks() -> bool:
    """Have blocks of LIMIT bytes and more go back to the system once they are freed; False where nothing was set."""
    if platform.libc_ver()[0] != "glibc" or any(os.environ.get(name) for name in _SETTINGS):
        return False
    return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LIMIT))
