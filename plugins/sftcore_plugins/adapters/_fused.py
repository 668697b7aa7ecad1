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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


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
            with without_autocast(x):
                inner_NR = x.flatten(0, -2).to(dtype) @ a_RI.to(dtype).T
                base_NO = base.flatten(0, -2).to(dtype)
                added_NO = torch.addmm(base_NO, inner_NR, b_OR.to(dtype).T, alpha=scaling)
            ctx.save_for_backward(x, inner_NR, a_RI, b_OR)
            ctx.scaling, ctx.dtype = scaling, dtype
            return added_NO.to(base.dtype).view_as(base)

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            x, inner_NR, a_RI, b_OR = ctx.saved_tensors
            dtype, needs = ctx.dtype, ctx.needs_input_grad
            with without_autocast(x):
                grad_NO = grad.flatten(0, -2).to(dtype)
                grad_NR = (grad_NO @ b_OR.to(dtype)).mul_(ctx.scaling)
                grad_x = (grad_NR @ a_RI.to(dtype)).to(x.dtype).view_as(x) if needs[1] else None
                grad_a = (grad_NR.T @ x.flatten(0, -2).to(dtype)).to(a_RI.dtype) if needs[2] else None
                grad_b = (grad_NO.T @ inner_NR).to(b_OR.dtype).mul_(ctx.scaling) if needs[3] else None
            return grad if needs[0] else None, grad_x, grad_a, grad_b, None, None

    return AddLowRank
