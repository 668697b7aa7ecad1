"""LoRA's low-rank product in one autograd function: the same result with fewer passes over memory, and less kept.

PEFT computes `base(x) + B(A(x)) * scaling` in four operations, each a pass over a tensor as large as the output; where
the base is in bfloat16 and the adapter in float32, it also keeps a float32 copy of `x` for every layer. Here one
`addmm` adds the product, and the backward pass makes what it needs from `x` as it came. It multiplies in the dtype of
autocast where that is on, as PEFT's four operations then do, and else in the adapter's.

Shapes: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROWS_AT_ONCE = 512
"""Rows whose copies in float32 are made together on a CPU: all 2,048 of a packed block took up to twice as long."""


def fuse(model: Any) -> int:
    """Give each plain LoRA layer of linear maps the fused forward; returns how many have it.

    A layer keeps PEFT's own forward for whatever else it is asked: several adapters or none, a merged adapter, a
    mixed batch; and under torch.compile, which fuses by itself. DoRA and other variants, and layers with a bias in the
    adapter, are left alone.
    """
    fused = 0
    for layer in model.modules():
        if _is_plain(layer):
            layer.forward = types.MethodType(_forward, layer)
            fused += 1
    return fused


def _is_plain(layer: Any) -> bool:
    import torch
    from peft.tuners.lora import LoraLayer

    if not isinstance(layer, LoraLayer) or layer.lora_variant or not layer.lora_A:
        return False
    maps = [*layer.lora_A.values(), *layer.lora_B.values()]
    return isinstance(layer.get_base_layer(), torch.nn.Linear) and all(
        type(one) is torch.nn.Linear and one.bias is None for one in maps
    )


def _forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    import torch

    active = [name for name in self.active_adapters if name in self.lora_A]
    plain = len(active) == 1 and not (args or kwargs or self.disable_adapters or self.merged)
    if not plain or torch.compiler.is_compiling():
        result: torch.Tensor = type(self).forward(self, x, *args, **kwargs)
        return result
    (name,) = active
    base = self.base_layer(x)
    weight_a, weight_b = self.lora_A[name].weight, self.lora_B[name].weight
    dropout = self.lora_dropout[name]
    if self.training and not isinstance(dropout, torch.nn.Identity):
        x = dropout(x.to(weight_a.dtype))
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_a.dtype
    added: torch.Tensor = _function().apply(base, x, weight_a, weight_b, self.scaling[name], dtype)
    return added


@functools.cache
def _function() -> Any:
    """The autograd function; made on demand, since torch is not imported with this module."""
    import torch
    from torch.autograd.function import once_differentiable

    def without_autocast(x: torch.Tensor) -> Any:
        device = x.device.type
        return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()

    class AddLowRank(torch.autograd.Function):  # type: ignore[misc]
        """base (..., O) + scaling * x (..., I) A^T (I, R) B^T (R, O), multiplied in dtype, in base's dtype."""

        @staticmethod
        def forward(
            ctx: Any,
            base: torch.Tensor,
            x: torch.Tensor,
            a_RI: torch.Tensor,
            b_OR: torch.Tensor,
            scaling: float,
            dtype: torch.dtype,
        ) -> torch.Tensor:
            base_NO, x_NI = base.flatten(0, -2), x.flatten(0, -2)
            down_IR, up_RO = a_RI.to(dtype).T, b_OR.to(dtype).T
            added_NO = torch.empty_like(base_NO)
            inner_NR = torch.empty(len(x_NI), len(a_RI), dtype=dtype, device=x.device)
            with without_autocast(x):
                for rows in _rows_at_once(x_NI, dtype):
                    torch.mm(x_NI[rows].to(dtype), down_IR, out=inner_NR[rows])
                    _put(added_NO[rows], torch.addmm, base_NO[rows].to(dtype), inner_NR[rows], up_RO, alpha=scaling)
            ctx.save_for_backward(x, inner_NR, a_RI, b_OR)
            ctx.scaling, ctx.dtype = scaling, dtype
            return added_NO.view_as(base)

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            x, inner_NR, a_RI, b_OR = ctx.saved_tensors
            dtype, needs = ctx.dtype, ctx.needs_input_grad
            grad_NO, x_NI = grad.flatten(0, -2), x.flatten(0, -2)
            down_RI, up_OR = a_RI.to(dtype), b_OR.to(dtype)
            grad_x_NI = torch.empty_like(x_NI) if needs[1] else None
            grad_a, grad_b = torch.zeros_like(down_RI), torch.zeros_like(up_OR)
            with without_autocast(x):
                for rows in _rows_at_once(x_NI, dtype):
                    wide = grad_NO[rows].to(dtype)
                    narrow = (wide @ up_OR).mul_(ctx.scaling)
                    if grad_x_NI is not None:
                        _put(grad_x_NI[rows], torch.mm, narrow, down_RI)
                    if needs[2]:
                        grad_a.addmm_(narrow.T, x_NI[rows].to(dtype))
                    if needs[3]:
                        grad_b.addmm_(wide.T, inner_NR[rows], alpha=ctx.scaling)
            return (
                grad if needs[0] else None,
                None if grad_x_NI is None else grad_x_NI.view_as(x),
                grad_a.to(a_RI.dtype) if needs[2] else None,
                grad_b.to(b_OR.dtype) if needs[3] else None,
                None,
                None,
            )

    return AddLowRank


def _rows_at_once(x_NI: torch.Tensor, dtype: torch.dtype) -> list[slice]:
    """Parts of the rows whose copies in another dtype a CPU keeps in its caches; else all of them."""
    cast = x_NI.device.type == "cpu" and x_NI.dtype != dtype
    step = ROWS_AT_ONCE if cast else max(len(x_NI), 1)
    return [slice(start, start + step) for start in range(0, max(len(x_NI), 1), step)]


def _put(out: torch.Tensor, product: Callable[..., torch.Tensor], *factors: torch.Tensor, **options: float) -> None:
    """Write a product to its place, in one pass where its dtype is that of the place."""
    if out.dtype == factors[0].dtype:
        product(*factors, **options, out=out)
    else:
        out.copy_(product(*factors, **options))
