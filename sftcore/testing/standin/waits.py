"""What makes the host wait for the stand-in, as it waits for a CUDA device."""

from __future__ import annotations

import collections
import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

aten = torch.ops.aten
HOST_READS = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique, aten._unique2, aten.unique_dim,
    aten.unique_consecutive, aten.equal, aten.bincount,
}  # fmt: skip
"""Operations whose result has a size or value that the host must know before it goes on."""
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._unsafe_index_put}
OWN = Path(__file__).parent
_counting: Waits | None = None


class Waits:
    """How often the host would have waited: `total`, by `kinds`, and by `where` (kind, file and line)."""

    def __init__(self) -> None:
        self.total = 0
        self.kinds: collections.Counter[str] = collections.Counter()
        self.where: collections.Counter[str] = collections.Counter()

    def add(self, kind: str) -> None:
        self.total += 1
        self.kinds[kind] += 1
        frames = [
            one
            for one in traceback.extract_stack()
            if "/torch/" not in one.filename and Path(one.filename).parent != OWN
        ] or traceback.extract_stack()
        self.where[f"{kind} {'/'.join(frames[-1].filename.split('/')[-2:])}:{frames[-1].lineno}"] += 1


@contextlib.contextmanager
def counting() -> Iterator[Waits]:
    """Count the waits of what runs inside."""
    global _counting
    before, _counting = _counting, Waits()
    try:
        yield _counting
    finally:
        _counting = before


def wait(kind: str) -> None:
    """The host waits."""
    if _counting is not None:
        _counting.add(kind)


# --- Pinned memory ----------------------------------------------------------------------------------------------------
_pinned: dict[int, StorageWeakRef] = {}


def pin(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in memory that the device reads by itself; a plain CPU tensor that `is_pinned`."""
    if is_pinned(tensor):
        return tensor
    for address in [address for address, storage in _pinned.items() if storage.expired()]:
        del _pinned[address]
    copied = tensor.clone()
    storage = StorageWeakRef(copied.untyped_storage())  # keeps the address from being given to another storage
    _pinned[storage.cdata] = storage
    return copied


def is_pinned(tensor: torch.Tensor) -> bool:
    """Whether it lies in memory that was pinned, as a view of a pinned tensor does."""
    if tensor.device.type != "cpu":
        return False
    found = _pinned.get(tensor.untyped_storage()._cdata)
    return found is not None and not found.expired()


def count_copy(source_here: bool, target_here: bool, other: torch.Tensor | None, *, non_blocking: bool) -> None:
    """A copy between host and device.

    Args:
        source_here, target_here: which of the two is on the device.
        other: the one that is not, where it exists before the copy.
        non_blocking: as the call says. torch waits for the stream after a copy that blocks, pinned or not
            (`at::cuda::memcpy_and_sync`). One that does not block may wait all the same where the host's memory is
            not pinned (CUDA's API synchronization behavior); `tensor.to("cpu", non_blocking=True)` pins by itself.
    """
    if source_here == target_here:
        return
    way = "copy to the host" if source_here else "copy to the device"
    if not non_blocking:
        wait(way)
    elif other is not None and not is_pinned(other):
        wait(f"{way}, not pinned")


def count_operation(packet: Any, args: Any, kwargs: dict[str, Any], *, from_cpu: bool) -> None:
    """An operation on tensors of the device; `from_cpu` says that it was given tensors of the CPU too."""
    if packet in HOST_READS:
        wait(packet.__name__)
    elif packet in INDEXING:
        indices = [one for one in args[1] if isinstance(one, torch.Tensor)]
        filled = packet in (aten.index_put, aten.index_put_) and args[2].numel() == 1 and len(indices) == 1
        if any(one.dtype in (torch.bool, torch.uint8) for one in indices) and not filled:  # torch fills without indices
            wait(f"{packet.__name__}[bool]")
        if from_cpu:
            wait("index from the cpu")
    elif packet is aten.repeat_interleave and kwargs.get("output_size") is None:
        wait("repeat_interleave")
