"""Memory that a run frees on a CPU, where glibc's heap would hold on to it.

Activations of some megabytes, freed in another order than they were made, leave holes that glibc cannot return, and by
its own rule it takes ever larger blocks from that heap. With a limit, larger blocks are asked of the system one by one,
and returned when they are freed. Mapping them anew each time costs about a quarter of the speed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import warnings

M_MMAP_THRESHOLD = -3
"""glibc's number of the limit from which a block is mapped on its own."""
LIMIT = 4 * 2**20
"""That limit in bytes; glibc raises its own up to 32 MiB as blocks are freed."""
_OTHER_WAYS = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def return_large_blocks() -> None:
    """Have freed blocks of LIMIT bytes and more returned to the system by this process, as long as it runs.

    It changes nothing, and says so, where the C library is not glibc or the environment chooses another way.
    """
    chosen = [name for name in _OTHER_WAYS if os.environ.get(name)]
    if chosen or platform.libc_ver()[0] != "glibc":
        why = f"{chosen[0]} is set and stays as it is" if chosen else "the C library is not glibc"
        warnings.warn(f"return_freed_memory changes nothing: {why}.", stacklevel=2)
    elif not ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LIMIT):
        warnings.warn("return_freed_memory changes nothing: glibc refused the limit.", stacklevel=2)
