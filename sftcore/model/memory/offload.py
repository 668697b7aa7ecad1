"""Offloads activations: what the forward pass saves for the backward pass is moved to host memory in between.

Copies run on a stream of their own. The backward pass reads the saved tensors in reverse order, and the next ones are
fetched while one is in use.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from attrs import define, field
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sftcore.config.checks import ON_CPU
from sftcore.core.errors import ConflictError


def offloading_of(model: torch.nn.Module, args: Any) -> ActivationOffloading | None:
    """The offloading that `activation_offloading` asks for, or None."""
    return ActivationOffloading(model, args.device) if args.activation_offloading else None


def refuse_offloading(args: Any) -> None:
    """Refuse `activation_offloading` before weights are read if this run's device cannot.

    Raises:
        ConflictError: the run is on a CPU, or on a device for which torch has no streams, as on Apple's (MPS).
    """
    if not args.activation_offloading:
        return
    kind = args.device.type
    if kind == "cpu" or not hasattr(torch.get_device_module(kind), "Stream"):
        what = ON_CPU if kind == "cpu" else f"torch has no streams on {kind}, on which activations would be copied."
        raise ConflictError(what, where="activation_offloading", fix="Set activation_offloading: false.")


SMALLEST = 4096
"""Tensors of fewer bytes stay on the device, because copying them is not worth it."""
AHEAD = 2
"""How many saved tensors are fetched in advance."""


@define(eq=False)
class SavedTensor:
    """One saved tensor: its copy in host memory, and the copy that was fetched back."""

    host: torch.Tensor
    at: int
    """Its index in the order of the forward pass."""
    fetched: tuple[torch.Tensor, Any] | None = None
    """The copy on the device, with the event that says when it has arrived."""


@define
class ActivationOffloading:
    """Moves what is saved for the backward pass of `model` from its device to host memory and back.

    Weights, buffers and small tensors stay; a tensor that several operations save is copied once.
    """

    model: torch.nn.Module
    device: torch.device
    num_bytes: int = 0
    """How many bytes the last forward pass moved."""
    _stream: Any = field(init=False)
    # only the graph keeps the copies alive, so that they are freed with it
    _order: list[weakref.ref[SavedTensor]] = field(factory=list)
    _known: dict[tuple[Any, ...], tuple[StorageWeakRef, weakref.ref[SavedTensor]]] = field(factory=dict)
    _stay: set[int] = field(factory=set)

    def __attrs_post_init__(self) -> None:
        # on a CPU, where tests run it, the copies are plain ones
        self._stream = None if self.device.type == "cpu" else self._streams.Stream(self.device)

    @property
    def _streams(self) -> Any:
        return torch.get_device_module(self.device)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """A context for one forward pass."""
        self._order, self._known, self.num_bytes = [], {}, 0
        weights = [*self.model.parameters(), *self.model.buffers()]
        self._stay = {pointer for one in weights if (pointer := _storage_pointer(one))}
        with saved_tensors_hooks(self._pack, self._unpack):
            yield
        self._known = {}

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | SavedTensor:
        if not self._moves(tensor):
            return tensor
        storage = StorageWeakRef(tensor.untyped_storage())
        key = (storage.cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version)
        if key in self._known:
            source, copy = self._known[key]
            # an address is reused once its storage is freed, which the weak reference tells
            if not source.expired() and (known := copy()) is not None:
                return known
        saved = self._to_host(tensor)
        self._known[key] = storage, weakref.ref(saved)
        self._order.append(weakref.ref(saved))
        return saved

    def _moves(self, tensor: torch.Tensor) -> bool:
        return (
            tensor.device.type == self.device.type
            and tensor.nbytes >= SMALLEST
            and not isinstance(tensor, torch.nn.Parameter)
            and not is_traceable_wrapper_subclass(tensor)  # such as FSDP's shards, which have no memory of their own
            and 0 not in tensor.stride()  # expanded: it holds less than it shows
            and _storage_pointer(tensor) not in self._stay
        )

    def _to_host(self, tensor: torch.Tensor) -> SavedTensor:
        self.num_bytes += tensor.nbytes
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._stream is not None)
        if self._stream is None:
            return SavedTensor(host.copy_(tensor.detach()), len(self._order))
        self._stream.wait_stream(self._streams.current_stream(self.device))
        with self._streams.stream(self._stream):
            host.copy_(tensor.detach(), non_blocking=True)
        tensor.record_stream(self._stream)  # its memory is not given to others before the copy is done
        return SavedTensor(host, len(self._order))

    def _unpack(self, packed: torch.Tensor | SavedTensor) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        tensor, arrived = self._fetch(packed)
        # a tensor that several operations saved is fetched for each of them: keeping it would hold on to the memory
        packed.fetched = None
        if self._stream is not None:
            for reference in reversed(self._order[max(packed.at - AHEAD, 0) : packed.at]):
                if (following := reference()) is not None:
                    self._fetch(following)
            compute = self._streams.current_stream(self.device)
            compute.wait_event(arrived)
            tensor.record_stream(compute)
        return tensor

    def _fetch(self, saved: SavedTensor) -> tuple[torch.Tensor, Any]:
        if saved.fetched is None and self._stream is None:
            saved.fetched = saved.host.clone(), None
        elif saved.fetched is None:
            with self._streams.stream(self._stream):
                saved.fetched = saved.host.to(self.device, non_blocking=True), self._stream.record_event()
        return saved.fetched


def _storage_pointer(tensor: torch.Tensor) -> int:
    local: torch.Tensor = getattr(tensor, "_local_tensor", tensor)  # the shard of a tensor that FSDP holds
    try:
        return int(local.untyped_storage().data_ptr())
    except RuntimeError:  # tensors without storage, such as those on the meta device
        return 0
