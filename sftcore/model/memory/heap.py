"""Memory that a run frees on a CPU, where glibc's heap would hold on to it.

Activations of some megabytes, kept between others that are freed, leave holes in the heap: about a third of what a step
holds at its peak. glibc gives them back when it is asked (malloc_trim), at the price of mapping the pages anew. Asked
after every fifth layer of a forward pass, the peak falls by a fifth and a step takes a few per cent longer.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sftcore.model.memory.layers import decoder_layers

if TYPE_CHECKING:
    import torch

EVERY = 5
"""Layers between two questions."""
WORTH = 128 * 2**20
"""Bytes of holes below which glibc is not asked."""


class _Information(ctypes.Structure):
    """glibc's `struct mallinfo2`; `fordblks` are the bytes of the heap that are free."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    ]


@contextmanager
def holes_returned(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """While `model` runs inside, return the heap's holes to the system: on a CPU, with glibc 2.33 or later."""
    trim = _trim() if device.type == "cpu" else None
    layers = decoder_layers(model)
    last = len(layers) - 1
    handles = [
        layer.register_forward_hook(trim)
        for number, layer in enumerate(layers)
        if trim is not None and (number % EVERY == EVERY - 1 or number == last)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@functools.cache
def _trim() -> Callable[..., None] | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = _Information

    def trim(*_: Any) -> None:
        import torch

        if not torch.compiler.is_compiling() and library.mallinfo2().fordblks > WORTH:
            library.malloc_trim(0)

    return trim
