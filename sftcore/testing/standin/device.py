"""A stand-in accelerator for machines without one: the device "standin:0", in pure Python, whose memory is the CPU's.

It shows on any machine what otherwise only a GPU shows:
- tensors of two devices in one operation are an error, worded as CUDA words it; so are `numpy()`, a generator of the
  other device, and kernels that are given CPU tensors (`kernel`);
- every operation that would make the host wait for the device is counted, with its source line (`counting`), copies
  from memory that is not pinned among them;
- autocast casts as on CUDA;
- `install(float64=False)` refuses float64 on the device, as Apple's MPS does.
It does not show speed, memory, a kernel's own numerics, or CUDA-only libraries.

    os.environ["ACCELERATE_TORCH_DEVICE"] = "standin:0"  # accelerate and TrainingArguments then place everything on it
    standin.install()  # before transformers is imported
    ...
    with standin.counting() as waits:
        trainer.train()
    print(waits.total, waits.where.most_common(10))

`sftcore.testing.standin.process` does so in a process of its own. Rests on torch's experimental hook for backends that
are written in Python (torch 2.10 and later).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sftcore.testing.standin import autocast
from sftcore.testing.standin.device_module import DeviceModule
from sftcore.testing.standin.waits import INDEXING, Waits, count_copy, count_operation, counting, is_pinned, pin, wait

__all__ = ["NAME", "StandInTensor", "Waits", "counting", "install", "kernel"]

NAME = "standin"
aten = torch.ops.aten
COPIES = {aten.copy_, aten._copy_from, aten.copy}
MOVES = {aten._to_copy, *COPIES}

_float64 = True


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A double of a device kernel: refuses CPU tensors with Triton's error, else computes `function`.

    A kernel makes nobody wait, so what `function` does to compute its result is not counted.
    """

    @functools.wraps(function)
    def launched(*args: Any, **kwargs: Any) -> Any:
        flat = tree_leaves((args, kwargs))
        if any(isinstance(one, torch.Tensor) and not isinstance(one, StandInTensor) for one in flat):
            raise ValueError("Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)")
        with counting():
            return function(*args, **kwargs)

    return launched


class StandInTensor(torch.Tensor):
    """A CPU tensor that says it is on the device."""

    _inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False) -> Any:
        if inner.dtype == torch.float64 and not _float64:
            raise TypeError(f"Cannot convert a {NAME} tensor to float64: this device has none.")
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=f"{NAME}:0", requires_grad=requires_grad,
        )  # fmt: skip
        made._inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"StandInTensor({self._inner!r})"

    @property
    def data(self) -> torch.Tensor:
        found: torch.Tensor = torch.Tensor.data.__get__(self)
        return found

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        if not isinstance(other, StandInTensor):
            raise NotImplementedError("The stand-in does not let a tensor of its own become one of the CPU.")
        torch.Tensor.data.__set__(self, other)
        self._inner = other._inner

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_with_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_with_tensors(index), value)

    def tolist(self) -> Any:
        wait("tolist")
        return self._inner.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory first."
        )

    __array__ = numpy

    def untyped_storage(self) -> Any:
        return self._inner.untyped_storage()

    def data_ptr(self) -> Any:
        return self._inner.data_ptr()

    def record_stream(self, stream: Any) -> None:
        """Its memory goes to nobody else before it is freed."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied = StandInTensor(self._inner.detach().clone(), self.requires_grad)
            memo[id(self)] = (
                torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
            )
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuilt, (self._inner.detach(), self.requires_grad, isinstance(self, torch.nn.Parameter))

    def new_tensor(self, data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> torch.Tensor:
        target = self.device if device is None else device
        return torch.tensor(data, dtype=dtype or self.dtype, device=target).requires_grad_(requires_grad)


def _rebuilt(inner: torch.Tensor, requires_grad: bool, is_parameter: bool) -> torch.Tensor:
    made = StandInTensor(inner, requires_grad)
    return torch.nn.Parameter(made, requires_grad) if is_parameter else made


def _with_tensors(index: Any) -> Any:
    """An index without lists, of which torch would make tensors below the dispatcher."""
    if isinstance(index, tuple):
        return tuple(map(_with_tensors, index))
    return torch.tensor(index, device=NAME) if isinstance(index, list) else index


@functools.cache
def _is_composite(func: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


def _is_here(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    packet, asked = func.overloadpacket, kwargs.get("device")
    flat = tree_leaves((args, kwargs))
    tensors = [one for one in flat if isinstance(one, torch.Tensor)]
    here = [one for one in tensors if isinstance(one, StandInTensor)]
    elsewhere = [one for one in tensors if not isinstance(one, StandInTensor) and one.dim() > 0]
    indexed = packet in INDEXING and isinstance(args[0], StandInTensor)
    if here and elsewhere and packet not in MOVES and not indexed:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and "
            f"{elsewhere[0].device}! (when calling {func})"
        )
    lands_here = bool(here)
    if asked is not None:
        lands_here = _is_here(asked)
        kwargs = {**kwargs, "device": torch.device("cpu")} if lands_here else kwargs
    elif packet in COPIES:
        lands_here = isinstance(args[0], StandInTensor)
    _count(packet, args, kwargs, lands_here, bool(elsewhere))
    _check_generator(kwargs.get("generator"), lands_here)
    inner = tree_map(lambda one: one._inner if isinstance(one, StandInTensor) else one, (args, kwargs))
    found = func(*inner[0], **inner[1])
    if not lands_here:
        return found
    known = {id(one._inner): one for one in here} if func._schema.is_mutable else {}

    def wrapped(one: Any) -> Any:
        if not isinstance(one, torch.Tensor) or isinstance(one, StandInTensor):
            return one
        return known[id(one)] if id(one) in known else StandInTensor(one)

    return tree_map(wrapped, found)


def _count(packet: Any, args: Any, kwargs: dict[str, Any], lands_here: bool, from_cpu: bool) -> None:
    if packet is aten._to_copy:
        source, non_blocking = args[0], bool(kwargs.get("non_blocking"))
        from_here = isinstance(source, StandInTensor)
        count_copy(from_here, lands_here, None if from_here else source, non_blocking=non_blocking)
    elif packet is aten.copy_:
        target, source = args[:2]
        non_blocking = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        from_here = isinstance(source, StandInTensor)
        count_copy(from_here, lands_here, target if from_here else source, non_blocking=non_blocking)
    else:
        count_operation(packet, args, kwargs, from_cpu=from_cpu)


class _Mode(TorchDispatchMode):
    """Catches what no tensor argument leads here: factories such as torch.zeros(device="standin:0")."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in (aten._pin_memory, aten.pin_memory, aten.is_pinned):
            if isinstance(args[0], StandInTensor):
                if func.overloadpacket is aten.is_pinned:
                    return False
                raise RuntimeError(f"cannot pin a tensor of {NAME}:0, only dense CPU tensors can be pinned")
            return is_pinned(args[0]) if func.overloadpacket is aten.is_pinned else pin(args[0])
        if _is_composite(func):  # in inference mode nothing has taken them apart before
            with self:
                return func.decompose(*args, **kwargs)
        if _is_here(kwargs.get("device")) or any(isinstance(one, StandInTensor) for one in tree_leaves((args, kwargs))):
            return _run(func, args, kwargs)
        _check_generator(kwargs.get("generator"), False)
        if kwargs.get("pin_memory"):
            return pin(func(*args, **{**kwargs, "pin_memory": False}))
        return func(*args, **kwargs)


# --- Random numbers -------------------------------------------------------------------------------------------------
class _Generator(torch._C.Generator):
    """A generator of either device; the device's draws as the CPU's does."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls, device="cpu" if _is_here(device) else device)
        if _is_here(device):
            _generators[made._cdata] = made
        return made

    @property
    def device(self) -> torch.device:
        return torch.device(f"{NAME}:0") if self._cdata in _generators else super().device


_generators: dict[int, _Generator] = {}
"""Those of the device, kept because the dispatcher hands out other Python objects of them."""


def _check_generator(generator: Any, lands_here: bool) -> None:
    if generator is not None and (generator._cdata in _generators) != lands_here:
        wanted, got = (NAME, "cpu") if lands_here else ("cpu", NAME)
        raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{got}'")


# --- Installing -----------------------------------------------------------------------------------------------------
_plain: dict[str, Any] = {}
_installed: list[Any] = []


def install(*, float64: bool = True) -> torch.device:
    """Make the device known to torch, for the rest of the process; a second call changes only `float64`."""
    global _float64
    _float64 = float64
    if not _installed:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

        _setup_privateuseone_for_python_backend(rename=NAME, backend_module=DeviceModule())
        torch.__future__.set_swap_module_params_on_conversion(True)
        torch._C._set_multithreading_enabled(False)  # the backward pass in the calling thread, where the mode is
        torch.serialization.add_safe_globals([_rebuilt])
        torch.Generator = _Generator
        _device_constructors()  # a cached set of functions that `with torch.device("meta")` changes: torch's own
        for name in ("tensor", "as_tensor"):  # these build their tensor below the dispatcher
            _plain[name] = getattr(torch, name)
            setattr(torch, name, functools.partial(_from_data, _plain[name]))
        _installed.extend([*autocast.register(NAME), _Mode()])
        _installed[-1].__enter__()
    return torch.device(f"{NAME}:0")


def _from_data(make: Callable[..., torch.Tensor], data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
    if isinstance(data, StandInTensor) and make is _plain["as_tensor"]:
        return data.to(device=data.device if device is None else device, dtype=kwargs.get("dtype") or data.dtype)
    if isinstance(data, (list, tuple)):
        data = tree_map(lambda one: one.item() if isinstance(one, StandInTensor) else one, data)
    target = _plain["tensor"]([]).device if device is None else device  # torch.get_default_device comes here itself
    if _is_here(target):
        return make(data, *args, **kwargs, device="cpu").to(target)
    return make(data, *args, **kwargs, **({} if device is None else {"device": device}))
