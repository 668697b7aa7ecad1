"""Products of float32 matrices, by oneDNN on CPUs on which torch's own choice leaves half of their speed.

torch gives them to Intel's MKL, which uses AVX-512 on Intel's own CPUs alone. oneDNN, to which torch gives products in
bfloat16, uses it on any. With one core of an AMD EPYC (Zen 5) and torch 2.13, 2,048 rows and widths of 192 to 1,536,
MKL reached 107 GFLOPS and oneDNN 240. Both compute in float32: they differ in the order of their sums.

Shapes: N rows, K products in a sum, M columns; O outputs of a layer, I inputs.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftcore.model.products.digits import keeps_digits_on_cpus

if TYPE_CHECKING:
    import torch

FEWEST = 2**22
"""Smaller products (N x K x M) take less time than oneDNN needs to set them up."""


def product(left_NK: torch.Tensor, right_KM: torch.Tensor, bias_M: torch.Tensor | None = None) -> torch.Tensor:
    """The product (N, M), plus the bias if there is one, within the passes of an autograd function.

    It is not recorded: neither factor gets a gradient.
    """
    import torch

    if not _is_faster_by_onednn(left_NK, right_KM):
        return torch.mm(left_NK, right_KM) if bias_M is None else torch.addmm(bias_M, left_NK, right_KM)
    (rows, inner), columns = left_NK.shape, right_KM.shape[1]
    first = _of_few_sizes(rows)
    if first < rows:
        found_NM = left_NK.new_empty(rows, columns)
        found_NM[:first] = product(left_NK[:first], right_KM, bias_M)
        found_NM[first:] = torch.nn.functional.linear(left_NK[first:], right_KM.T, bias_M)
        return found_NM
    first = _of_few_sizes(inner) if right_KM.is_contiguous() else inner  # part of a row would be copied
    found_NM = by_onednn(left_NK[:, :first], right_KM[:first], bias_M)
    return found_NM if first == inner else found_NM.addmm_(left_NK[:, first:], right_KM[first:])


def _of_few_sizes(size: int) -> int:
    """How many rows of so many to give to oneDNN: all that a layer has, and of a batch at least eight ninths.

    oneDNN makes code for each shape, and keeps up to a thousand of them, of half a MiB each, and glibc more between
    them: batches with ever other numbers of rows took a GiB. So these have eight sizes between powers of two.
    """
    return size if size % 64 == 0 or size < 64 else size - size % 2 ** (size.bit_length() - 4)


def by_onednn(left_NK: torch.Tensor, right_KM: torch.Tensor, bias_M: torch.Tensor | None = None) -> torch.Tensor:
    """The product of float32 matrices (N, M), in whatever order their numbers lie in memory."""
    import torch

    operator: Any = torch.ops.mkldnn._linear_pointwise
    # it takes the second factor as a layer keeps it, (M, K), by rows or by columns
    weight_MK = right_KM.T if right_KM.is_contiguous() or right_KM.T.is_contiguous() else right_KM.T.contiguous()
    # of a bias it takes the numbers that follow the first in memory, whatever its strides
    bias_M = None if bias_M is None else bias_M.contiguous()
    found: torch.Tensor = operator(left_NK, weight_MK, bias_M, "none", [], "")
    return found


def linear(layer: Callable[[torch.Tensor], torch.Tensor], states_NI: torch.Tensor) -> torch.Tensor:
    """What the layer gives, (N, O), with its gradients; by `product` where the layer is plain and that is faster."""
    import torch

    if not (isinstance(layer, torch.nn.Linear) and states_NI.ndim == 2 and is_plain_linear(layer, states_NI)):
        return layer(states_NI)
    if _is_another_way() or not _is_faster_by_onednn(states_NI, layer.weight.T):
        return layer(states_NI)
    found: torch.Tensor = _function().apply(states_NI, layer.weight, layer.bias)
    return found


def is_plain_linear(layer: torch.nn.Module, states: torch.Tensor) -> bool:
    """Whether a layer computes x W^T + b by the weights that it shows, and nobody looks at what goes in or out."""
    import torch

    if torch._C._len_torch_dispatch_stack():  # selective checkpointing keeps products, and others count them
        return False
    if type(layer) is not torch.nn.Linear or is_hooked(layer):
        return False
    weight = layer.weight
    # weights that are sharded (DeepSpeed, DTensor) are gathered by the operations that they know
    return type(weight) is torch.nn.Parameter and not hasattr(weight, "ds_id") and weight.dtype == states.dtype


def is_hooked(layer: torch.nn.Module) -> bool:
    """Whether somebody looks at what a layer is given or gives, or has replaced its forward."""
    import torch

    own = vars(layer)  # read several hundred times a step
    forward, backward = own["_forward_pre_hooks"] or own["_forward_hooks"], own["_backward_pre_hooks"]
    of_layer = bool(forward or backward or own["_backward_hooks"])
    return of_layer or "forward" in own or torch.nn.modules.module._has_any_global_hook()


def _is_another_way() -> bool:
    """Whether torch is to see its own operations, or casts what they are given."""
    import torch

    from sftcore.losses.asked_again import asked_plainly

    return asked_plainly() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")


def _is_faster_by_onednn(left_NK: torch.Tensor, right_KM: torch.Tensor) -> bool:
    import torch

    return (
        left_NK.device.type == "cpu"
        and left_NK.dtype == right_KM.dtype == torch.float32
        and left_NK.numel() * right_KM.shape[-1] >= FEWEST
        and keeps_digits_on_cpus()  # else the user asks for fewer, which torch knows
        and torch.backends.mkldnn.enabled
        and not torch._C._len_torch_dispatch_stack()  # who looks at torch's operations expects its products
        and _cpu_prefers_onednn()
    )


@functools.cache
def _cpu_prefers_onednn() -> bool:
    """Whether this is a CPU of AMD with AVX-512, and torch has both libraries."""
    import torch

    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return both and wide and hasattr(torch.ops.mkldnn, "_linear_pointwise") and "AuthenticAMD" in _named_cpu()


def _named_cpu() -> str:
    """What the system says of the CPU, its maker among it."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:  # not Linux
        return platform.processor()


@functools.cache
def _function() -> Any:
    """The autograd function; made on demand, since torch is not imported with this module."""
    import torch

    class Linear(torch.autograd.Function):  # type: ignore[misc]
        """x W^T + b by `product`, and its gradients."""

        @staticmethod
        def forward(ctx: Any, states_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> Any:
            of_states, of_weight, _ = ctx.needs_input_grad
            ctx.save_for_backward(states_NI if of_weight else None, weight_OI if of_states else None)
            return product(states_NI, weight_OI.T, bias_O)

        @staticmethod
        def backward(ctx: Any, grad_NO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            states_NI, weight_OI = ctx.saved_tensors
            multiply = torch.matmul if torch.is_grad_enabled() else product  # of create_graph=True
            return (
                multiply(grad_NO, weight_OI) if ctx.needs_input_grad[0] else None,
                multiply(grad_NO.T, states_NI) if ctx.needs_input_grad[1] else None,
                grad_NO.sum(0) if ctx.needs_input_grad[2] else None,
            )

    return Linear
