"""LoRA's low-rank product in one autograd function: the same result with fewer passes over memory, and less kept.

PEFT computes `base(x) + B(A(x)) * scaling` in four operations, each a pass over a tensor as large as the output; where
the base is in bfloat16 and the adapter in float32, it also keeps a float32 copy of `x` for every layer. Here one
`addmm` adds the product. Where the base is a plain product with frozen weights, its output is written over, and its
gradient is computed together with the adapter's. The backward pass makes what it needs from `x` as it came. It
multiplies in the dtype of autocast where that is on, as PEFT's four operations then do, and else in the adapter's.

Shapes: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterable
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

    from sftcore.plugin_api import is_hooked

    active = [name for name in self.active_adapters if name in self.lora_A]
    plain = len(active) == 1 and not (args or kwargs or self.disable_adapters or self.merged)
    plain = plain and not any(map(is_hooked, (self.lora_A[active[0]], self.lora_B[active[0]])))
    if not plain or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        result: torch.Tensor = type(self).forward(self, x, *args, **kwargs)
        return result
    (name,) = active
    weight_a, weight_b = self.lora_A[name].weight, self.lora_B[name].weight
    dropout, device = self.lora_dropout[name], x.device.type
    dropped = self.training and not isinstance(dropout, torch.nn.Identity)
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else weight_a.dtype
    base, frozen = None, (None, None)
    if not (dropped or autocast) and _is_frozen_product(self.base_layer, x):
        frozen = self.base_layer.weight, self.base_layer.bias
    else:
        base = self.base_layer(x)
    if dropped:
        x = dropout(x.to(weight_a.dtype))
    added: torch.Tensor = _function().apply(base, *frozen, x, weight_a, weight_b, self.scaling[name], dtype)
    return added


def _is_frozen_product(layer: torch.nn.Module, x: torch.Tensor) -> bool:
    """Whether a layer computes x W^T with weights that are not trained, and nobody looks at what it gives."""
    from sftcore.plugin_api import is_plain_linear

    return is_plain_linear(layer, x) and not any(one.requires_grad for one in layer.parameters())


@functools.cache
def _function() -> Any:
    """The autograd function; made on demand, since torch is not imported with this module."""
    import torch

    from sftcore.plugin_api import product

    def without_autocast(x: torch.Tensor) -> Any:
        device = x.device.type
        return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()

    class AddLowRank(torch.autograd.Function):  # type: ignore[misc]
        """base (..., O) + scaling * x (..., I) A^T (I, R) B^T (R, O), multiplied in dtype, in base's dtype.

        Without `base`, it is x W^T plus the bias of frozen weights (O, I): it is added to in place, and x gets the
        gradient of both.
        """

        @staticmethod
        def forward(
            ctx: Any,
            base: torch.Tensor | None,
            weight_OI: torch.Tensor | None,
            bias_O: torch.Tensor | None,
            x: torch.Tensor,
            a_RI: torch.Tensor,
            b_OR: torch.Tensor,
            scaling: float,
            dtype: torch.dtype,
        ) -> torch.Tensor:
            x_NI = x.reshape(-1, x.shape[-1])
            if weight_OI is not None:
                added_NO = product(x_NI, weight_OI.T, bias_O)
            else:
                assert base is not None
                added_NO = base.clone(memory_format=torch.contiguous_format).view(-1, base.shape[-1])
            down_IR, up_RO = a_RI.to(dtype).T, b_OR.to(dtype).T
            inner = []
            with without_autocast(x):
                for some_x, some_added in _rows_at_once(dtype, x_NI, added_NO):
                    inner.append(product(some_x.to(dtype), down_IR))
                    _add_product(some_added, inner[-1], up_RO, scaling)
            inner_NR = inner[0] if len(inner) == 1 else torch.cat(inner)
            ctx.save_for_backward(x, inner_NR, a_RI, b_OR, weight_OI)
            ctx.scaling, ctx.dtype = scaling, dtype
            # as torch's own linear does: what a function gives as a view may not be changed in place
            return torch.ops.aten._unsafe_view(added_NO, [*x.shape[:-1], added_NO.shape[-1]])

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            if torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated itself
                with without_autocast(grad):
                    return _differentiable(ctx, grad)
            x, inner_NR, a_RI, b_OR, weight_OI = ctx.saved_tensors
            dtype, needs = ctx.dtype, ctx.needs_input_grad
            grad_NO, x_NI = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
            down_RI, up_OR = a_RI.to(dtype), b_OR.to(dtype)
            grad_x_NI = grad_a_RI = grad_b_RO = None
            if needs[3]:
                grad_x_NI = torch.zeros_like(x_NI) if weight_OI is None else product(grad_NO, weight_OI)
            found_NI = x_NI if grad_x_NI is None else grad_x_NI  # any rows, where none are written
            with without_autocast(x):
                for some_x, some_grad, some_inner, some_found in _rows_at_once(
                    dtype, x_NI, grad_NO, inner_NR, found_NI
                ):
                    wide = some_grad.to(dtype)
                    narrow = product(wide, up_OR).mul_(ctx.scaling)
                    if grad_x_NI is not None:
                        _add_product(some_found, narrow, down_RI, 1.0)
                    if needs[4]:
                        grad_a_RI = _sum(grad_a_RI, product(narrow.T, some_x.to(dtype)))
                    if needs[5]:
                        # not (O, R) at once: of narrow results, CPUs compute wide ones faster
                        grad_b_RO = _sum(grad_b_RO, product(some_inner.T, wide))
            return (
                grad if needs[0] else None,
                None,
                None,
                None if grad_x_NI is None else grad_x_NI.view_as(x),
                None if grad_a_RI is None else grad_a_RI.to(a_RI.dtype),
                None if grad_b_RO is None else grad_b_RO.mul_(ctx.scaling).T.to(b_OR.dtype).contiguous(),
                None,
                None,
            )

    return AddLowRank


def _differentiable(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """The gradients of `AddLowRank` in operations of torch's own, none of them in place."""
    x, _, a_RI, b_OR, weight_OI = ctx.saved_tensors
    scaling, dtype = ctx.scaling, ctx.dtype
    grad_NO, x_NI = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    wide_NO, tall_NI, down_RI, up_OR = (one.to(dtype) for one in (grad_NO, x_NI, a_RI, b_OR))
    narrow_NR = (wide_NO @ up_OR) * scaling
    grad_x_NI = (narrow_NR @ down_RI).to(x.dtype)
    if weight_OI is not None:
        grad_x_NI = grad_x_NI + grad_NO @ weight_OI
    grad_a_RI = (narrow_NR.T @ tall_NI).to(a_RI.dtype)
    grad_b_OR = (wide_NO.T @ (tall_NI @ down_RI.T) * scaling).to(b_OR.dtype)
    found = grad, None, None, grad_x_NI.view_as(x), grad_a_RI, grad_b_OR, None, None
    return tuple(one if needed else None for one, needed in zip(found, ctx.needs_input_grad, strict=True))


def _rows_at_once(dtype: torch.dtype, x_NI: torch.Tensor, *others: torch.Tensor) -> Iterable[tuple[torch.Tensor, ...]]:
    """The same rows of each, as many as have copies in another dtype that a CPU keeps in its caches; else all."""
    cast = x_NI.device.type == "cpu" and x_NI.dtype != dtype
    if not cast or len(x_NI) <= ROWS_AT_ONCE:
        return [(x_NI, *others)]
    return zip(*(one.split(ROWS_AT_ONCE) for one in (x_NI, *others)), strict=True)


def _sum(former: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    return part if former is None else former.add_(part)


def _add_product(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scaling: float) -> None:
    """out += scaling * left right, computed in the dtype of the factors."""
    if out.dtype == left.dtype:
        out.addmm_(left, right, alpha=scaling)
    else:
        out.copy_(out.to(left.dtype).addmm_(left, right, alpha=scaling))
