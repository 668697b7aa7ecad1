"""Counts the bytes of the tensors that are alive while a step runs on shapes alone."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within it, `now` are the bytes of all tensors that are alive, and `peak` the most that were at one time.

    A storage counts once, however many views of it there are, and until the last of them is gone. What an operation
    takes for itself while it runs, such as an attention's buffers, is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            if isinstance(one, torch.Tensor):
                self.see(one)
        return found

    def see(self, tensor: torch.Tensor) -> None:
        """Count a tensor that was made outside, as of now."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def begin_peak(self) -> None:
        """Look for the peak from here on."""
        self.peak = self.now


def bytes_of(tensors: Any) -> int:
    """The bytes of tensors, those that share a storage once."""
    return sum({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}.values())
