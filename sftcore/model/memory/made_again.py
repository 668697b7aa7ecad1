"""Layers that keep less for the backward pass: what is cheap to make again is made again when it is needed.

A decoder layer keeps the input of each of its projections. Some of these are a few passes over memory away from tensors
that it keeps anyway, and not a product of matrices: the output of a norm, and in a gated MLP, which computes
down(act(gate(x)) * up(x)), the activation and the product. These are made again from the norm's input and from the two
projections. Results and gradients are the same bit by bit, with whatever layers or adapters the projections are.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from attrs import define, field

from sftcore.model.memory.layers import decoder_layers
from sftcore.model.memory.rms_norm import rms_norm

if TYPE_CHECKING:
    import torch

_MLP_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")


@contextmanager
def keeping_less(model: torch.nn.Module) -> Iterator[int]:
    """Inside, the decoder layers of the model keep less; gives how many norms and gated MLPs take part.

    Only modules take part whose forward is exactly Llama's, or torch's LayerNorm; one that has been replaced does not.
    """
    layers = [layer for layer in decoder_layers(model) if "forward" not in vars(layer)]
    inner = {module: made for layer in layers for module in layer.modules() if (made := _forward_of(module))}
    changed = {**dict.fromkeys(layers, _layer), **inner} if inner else {}
    for module, forward in changed.items():
        # can be pickled and copied with the model, as a bound method of a foreign function cannot
        vars(module)["forward"] = functools.partial(forward, module)
    try:
        yield len(inner)
    finally:
        for module, forward in changed.items():
            if getattr(vars(module).get("forward"), "func", None) is forward:
                del vars(module)["forward"]


def _forward_of(module: torch.nn.Module) -> Callable[..., Any] | None:
    import torch
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    if "forward" in vars(module):
        return None
    if type(module) is torch.nn.LayerNorm:
        return _layer_norm
    if _same_code(module, LlamaRMSNorm):
        return _rms_norm
    has_parts = all(hasattr(module, name) for name in _MLP_PARTS)
    return _gated_mlp if has_parts and _same_code(module, LlamaMLP) and _is_plain(module.act_fn) else None


def _is_plain(activation: Any) -> bool:
    """Whether an activation gives the same each time, and nobody looks at it or changes what it gives."""
    import torch

    known = isinstance(activation, torch.nn.Module) and (
        type(activation) in (torch.nn.SiLU, torch.nn.GELU, torch.nn.ReLU)
        or type(activation).__module__ == "transformers.activations"
    )
    return known and not (activation._forward_hooks or activation._forward_pre_hooks)


def _same_code(module: torch.nn.Module, wanted: Any) -> bool:
    """Whether a module's forward is this class's, which transformers copies from model to model."""
    own = getattr(type(module).forward, "__code__", None)
    code = wanted.forward.__code__
    return own is not None and (own.co_code, own.co_names) == (code.co_code, code.co_names)


# --- The modules' forwards --------------------------------------------------------------------------------------------
def _layer(self: Any, *args: Any, **kwargs: Any) -> Any:
    import torch

    plain = type(self).forward
    # somebody else decides what is kept: checkpointing around a layer, save_on_cpu, torch.func, which takes no hooks
    decided = torch._C._autograd._top_saved_tensors_default_hooks(False) or torch._C._functorch.peek_interpreter_stack()
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or decided:
        return plain(self, *args, **kwargs)
    kept = _Kept()
    with kept.collecting(), torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        return plain(self, *args, **kwargs)


def _layer_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    plain = type(self).forward
    normed: torch.Tensor = plain(self, x)
    if _norm_takes_part(self, x):
        given, unchanged = x.detach(), _unchanged(x, self.weight)

        def again() -> torch.Tensor:
            unchanged()
            return cast("torch.Tensor", plain(self, given))

        _collecting[-1].offer(normed, again)
    return normed


def _rms_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Llama's; in half precision in one function, since its operations keep copies in float32 of each other."""
    import torch

    if not _norm_takes_part(self, x):
        plain: torch.Tensor = type(self).forward(self, x)
        return plain
    given, weight, unchanged = x.detach(), self.weight, _unchanged(x, self.weight)

    def scaled_again() -> torch.Tensor:
        unchanged()
        return (given.to(torch.float32) * kept_scale).to(given.dtype)

    offer = _collecting[-1].offer
    if x.dtype != torch.float32:
        normed, kept_scale = rms_norm(x, weight, self.variance_epsilon, unchanged)
    else:
        # operation by operation, as autograd adds up their gradients one by one
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        scaled, kept_scale = x * scale, scale.detach()
        offer(scaled, scaled_again)  # before an operation keeps it
        normed = weight * scaled
    offer(normed, lambda: weight * scaled_again())
    return normed


def _norm_takes_part(module: Any, x: torch.Tensor) -> bool:
    import torch

    # sharded weights (FSDP 1, DeepSpeed) may be gone by the backward pass
    kind = type(module.weight)
    # weights that are shapes alone are of a kind of their own
    whole = kind is torch.nn.Parameter or kind.__module__ == "torch._subclasses.fake_tensor"
    return bool(_collecting) and x.requires_grad and whole and not hasattr(module.weight, "ds_id")


def _unchanged(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], None]:
    """What raises if one of them has been changed in place since."""
    versions = x._version, weight._version
    given = x.detach()  # counts with x, and is not part of the graph

    def check() -> None:
        if (given._version, weight._version) != versions:
            raise RuntimeError(
                "the input or the weight of a norm was changed in place between the forward pass and the backward pass"
            )

    return check


def _gated_mlp(self: Any, x: torch.Tensor) -> torch.Tensor:
    gate, up = self.gate_proj(x), self.up_proj(x)
    activated = self.act_fn(gate)
    if not _collecting or not gate.requires_grad or not _is_plain(self.act_fn):
        whole: torch.Tensor = self.down_proj(activated * up)
        return whole
    kept, given = _collecting[-1], (gate.detach(), up.detach())
    make = kept.offer(activated, lambda: self.act_fn(given[0]))
    product = activated * up
    kept.offer(product, lambda: make() * given[1], once=True)
    down: torch.Tensor = self.down_proj(product)
    return down


# --- What is kept -----------------------------------------------------------------------------------------------------
_collecting: list[_Kept] = []
"""The calls of layers that are running, the innermost last."""


@define(eq=False)
class _Kept:
    """What one call of a layer can make again."""

    _offers: dict[int, tuple[torch.Tensor, int, Callable[[], torch.Tensor]]] = field(factory=dict)
    _last: tuple[int, torch.Tensor] | None = None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Take offers inside."""
        _collecting.append(self)
        try:
            yield
        finally:
            _collecting.pop()
            self._offers.clear()

    def offer(
        self, tensor: torch.Tensor, make: Callable[[], torch.Tensor], *, once: bool = False
    ) -> Callable[[], torch.Tensor]:
        """Say how this tensor is made again; `once` where a single operation keeps it. Returns what makes it."""

        number = len(self._offers)

        def made() -> torch.Tensor:
            import torch

            # several projections ask for one input, one after the other
            if self._last is not None and self._last[0] == number:
                return self._last[1]
            with torch.no_grad():
                found = make()
            if not once:
                self._last = number, found
            return found

        self._offers[tensor.untyped_storage()._cdata] = tensor, tensor._version, made
        return made

    def pack(self, tensor: torch.Tensor) -> Any:
        """What is kept of a tensor that an operation saves: itself, or a function that makes it again."""
        offered, version, make = self._offers.get(tensor.untyped_storage()._cdata, (None, 0, None))
        if offered is None or make is None or offered._version != version:  # a hook has written into it
            return tensor
        # autograd hands over an alias, and layers flatten what they are given
        if tensor.dtype != offered.dtype or tensor.numel() != offered.numel():
            return tensor
        if not (tensor.is_contiguous() and offered.is_contiguous()):
            return tensor
        shape = tensor.shape
        return lambda: make().view(shape)

    @staticmethod
    def unpack(packed: Any) -> torch.Tensor:
        """The tensor again."""
        found: torch.Tensor = packed() if isinstance(packed, types.FunctionType) else packed
        return found
