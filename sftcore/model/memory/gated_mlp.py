"""Gated MLPs that keep less for the backward pass: the two projections, and not also what is made of them.

down(act(gate(x)) * up(x)) keeps four tensors of the inner width: both projections, the activation and the product. The
last two are made again from the first two when they are needed, which costs three passes over memory and no product of
matrices. Results and gradients are the same bit by bit, with whatever layers or adapters the projections are.

Shapes: N tokens, I inner width.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import define

if TYPE_CHECKING:
    import torch

_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")


@contextmanager
def keeping_less(model: torch.nn.Module) -> Iterator[int]:
    """Inside, the gated MLPs of the model keep less; gives their number.

    MLPs whose forward is not exactly Llama's, or has been replaced, stay as they are.
    """
    changed = [module for module in model.modules() if _is_gated(module)]
    for module in changed:
        vars(module)["forward"] = types.MethodType(_forward, module)
    try:
        yield len(changed)
    finally:
        for module in changed:
            if getattr(vars(module).get("forward"), "__func__", None) is _forward:
                del vars(module)["forward"]


def _is_gated(module: torch.nn.Module) -> bool:
    from transformers.models.llama.modeling_llama import LlamaMLP

    if "forward" in vars(module) or not all(hasattr(module, name) for name in _PARTS):
        return False
    own, wanted = getattr(type(module).forward, "__code__", None), LlamaMLP.forward.__code__
    # transformers copies this forward from model to model
    return own is not None and (own.co_code, own.co_names) == (wanted.co_code, wanted.co_names)


def _forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    import torch

    gate, up = self.gate_proj(x), self.up_proj(x)
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not gate.requires_grad:
        whole: torch.Tensor = self.down_proj(self.act_fn(gate) * up)
        return whole
    kept = _Kept(self.act_fn, gate.detach(), up.detach())
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        activated = kept.activated = self.act_fn(gate)
        product = kept.product = activated * up
        down: torch.Tensor = self.down_proj(product)
    kept.activated = kept.product = None
    return down


@define(eq=False)
class _Kept:
    """The projections of one call, from which the activation and the product are made again."""

    act: Callable[[torch.Tensor], torch.Tensor]
    gate_NI: torch.Tensor
    up_NI: torch.Tensor
    activated: torch.Tensor | None = None
    product: torch.Tensor | None = None
    _again: torch.Tensor | None = None

    def pack(self, tensor: torch.Tensor) -> Any:
        """What is kept of a tensor: itself, or a function that makes it again."""
        shape = tensor.shape
        if self._is(tensor, self.product):
            return lambda: (self._activation(keep=True) * self.up_NI).view(shape)
        if self._is(tensor, self.activated):
            return lambda: self._activation(keep=False).view(shape)
        return tensor

    def unpack(self, packed: Any) -> torch.Tensor:
        """The tensor again."""
        found: torch.Tensor = packed() if isinstance(packed, types.FunctionType) else packed
        return found

    def _activation(self, *, keep: bool) -> torch.Tensor:
        """Made once for both: the product is asked for first, where the layer behind it needs its input."""
        import torch

        found, self._again = self._again, None
        if found is None:
            with torch.no_grad():
                found = self.act(self.gate_NI)
        self._again = found if keep else None
        return found

    @staticmethod
    def _is(tensor: torch.Tensor, made: torch.Tensor | None) -> bool:
        """Whether it is this tensor under another name; autograd hands over an alias."""
        return (
            made is not None
            and tensor.dtype == made.dtype
            and tensor.numel() == made.numel()
            and tensor.is_contiguous()
            and tensor.untyped_storage()._cdata == made.untyped_storage()._cdata
        )
