"""LoRA's low-rank product in one autograd function: the same result with fewer passes over memory, and less kept.

PEFT computes `base(x) + B(A(x)) * scaling` in four operations, each a pass over a tensor as large as the output; where
the base is in bfloat16 and the adapter in float32, it also keeps a float32 copy of `x` for every layer. Here one
`addmm` adds the product. Where the base is a plain product with frozen weights, its output is written over, and its
gradient is computed together with the adapter's; layers of one module that are given the same input, as those of
queries, keys and values, are then computed together. The backward pass makes what it needs from `x` as it came. It
multiplies in the dtype of autocast where that is on, as PEFT's four operations then do, and else in the adapter's.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import TYPE_CHECKING, Any

from attrs import define

from sftcore_plugins.adapters._low_rank import LowRank, add_low_rank

if TYPE_CHECKING:
    import torch


TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""What transformers' decoders call the layers of a module that are given its own input."""


def fuse(model: Any) -> int:
    """Give each plain LoRA layer of linear maps the fused forward; returns how many have it.

    A layer keeps PEFT's own forward for whatever else it is asked: several adapters or none, a merged adapter, a
    mixed batch; and under torch.compile, which fuses by itself. DoRA and other variants, and layers with a bias in the
    adapter, are left alone.
    """
    fused = [layer for layer in model.modules() if _is_plain(layer)]
    siblings: dict[Any, Siblings] = {}
    for parent in model.modules():
        for one in _siblings(parent):
            parent.register_forward_pre_hook(one.begin)
            parent.register_forward_hook(one.end, always_call=True)
            siblings.update(dict.fromkeys(one.layers, one))
    for layer in fused:
        layer.forward = functools.partial(_forward, layer, siblings.get(layer) or Siblings((layer,)))
    return len(fused)


def _siblings(parent: Any) -> list[Siblings]:
    """The layers of this module that are given its own input."""
    groups = ([layer for name in names if _is_plain(layer := getattr(parent, name, None))] for names in TOGETHER)
    found = [Siblings(tuple(layers)) for layers in groups if len(layers) > 1]
    if not found or getattr(parent, "is_kv_shared_layer", False):  # whose keys and values are another layer's
        return []
    try:
        names = inspect.signature(parent.forward).parameters
    except (TypeError, ValueError):  # of what is no function of Python
        return []
    others = any(name.endswith("states") and name != "hidden_states" for name in names)
    return [] if others else found  # keys and values of another sequence


def _is_plain(layer: Any) -> bool:
    import torch
    from peft.tuners.lora import LoraLayer

    if not isinstance(layer, LoraLayer) or layer.lora_variant or not layer.lora_A:
        return False
    maps = [*layer.lora_A.values(), *layer.lora_B.values()]
    return isinstance(layer.get_base_layer(), torch.nn.Linear) and all(
        type(one) is torch.nn.Linear and one.bias is None for one in maps
    )


def _forward(self: Any, siblings: Siblings, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    import torch

    others = bool(args or kwargs or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())
    if not others and (waiting := siblings.waiting(self, x)) is not None:
        return waiting
    name = None if others else _only_adapter(self)
    if name is None:
        result: torch.Tensor = type(self).forward(self, x, *args, **kwargs)
        return result
    if _is_sum_of_products(self, name, x):
        return siblings.outputs(self, name, x)
    base, weight_a, device = self.base_layer(x), self.lora_A[name].weight, x.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else weight_a.dtype
    if _drops(self, name):
        x = self.lora_dropout[name](x.to(weight_a.dtype))
    layer = LowRank(base, None, None, weight_a, self.lora_B[name].weight)
    return add_low_rank(x, dtype, [self.scaling[name]], [layer])[0]


def _only_adapter(layer: Any) -> str | None:
    """The name of the adapter, if only one is added now, and nobody looks at what its parts are given or give."""
    from sftcore.plugin_api import is_hooked

    active: list[str] = [name for name in layer.active_adapters if name in layer.lora_A]
    plain = len(active) == 1 and not (layer.disable_adapters or layer.merged)
    if not plain or is_hooked(layer.lora_A[active[0]]) or is_hooked(layer.lora_B[active[0]]):
        return None
    return active[0]


def _drops(layer: Any, name: str) -> bool:
    import torch

    return layer.training and not isinstance(layer.lora_dropout[name], torch.nn.Identity)


def _is_sum_of_products(layer: Any, name: str, x: torch.Tensor) -> bool:
    """Whether x W^T is to be computed, with weights that are not trained, and nobody looks at what that gives."""
    import torch

    from sftcore.plugin_api import is_plain_linear

    base = layer.base_layer
    plain = not (_drops(layer, name) or torch.is_autocast_enabled(x.device.type)) and is_plain_linear(base, x)
    return plain and not any(one.requires_grad for one in base.parameters())


@define(eq=False, slots=False)
class Siblings:
    """LoRA layers that their module gives its own input: while it runs, all are computed with the first that it calls.

    A layer that is given another tensor is computed by itself, and so are all that are called from elsewhere.
    """

    layers: tuple[Any, ...]
    _is_first: bool = False
    """Whether the module runs, and has not called any yet."""
    _computed: tuple[weakref.ref[torch.Tensor], tuple[int, bool], dict[Any, torch.Tensor]] | None = None
    """A tensor, its state, and what layers give for it that have not been called yet."""

    def __reduce__(self) -> Any:
        """A copy waits for no calls; its layers follow once it exists, since they refer to it."""
        return type(self), ((),), {"layers": self.layers}

    def begin(self, *_: Any) -> None:
        """Before the forward of their module."""
        self._is_first, self._computed = True, None

    def end(self, *_: Any) -> None:
        """After it, or when it has failed."""
        self._is_first, self._computed = False, None

    def waiting(self, layer: Any, x: torch.Tensor) -> torch.Tensor | None:
        """What this layer gives for this input, (..., O), if that has been computed."""
        if self._computed is None:
            return None
        given, state, outputs = self._computed
        found = outputs.pop(layer, None)
        return found if given() is x and state == _state(x) else None

    def outputs(self, layer: Any, name: str, x: torch.Tensor) -> torch.Tensor:
        """The same, computed now, for the first together with those that go with it."""
        group, is_first = [(layer, name)], self._is_first
        self._is_first = False
        if is_first and not x.is_inference():  # whose changes in place are not counted
            others = (one for one in self.layers if one is not layer)
            group += [(one, of) for one in others if (of := _goes_with(layer, name, one, x))]
        parts, scalings = [], []
        for one, of in group:
            base, weight_a, weight_b = one.base_layer, one.lora_A[of].weight, one.lora_B[of].weight
            parts.append(LowRank(None, base.weight, base.bias, weight_a, weight_b))
            scalings.append(one.scaling[of])
        found, *rest = add_low_rank(x, parts[0].a_RI.dtype, scalings, parts)
        if rest:
            waiting = {one: output for (one, _), output in zip(group[1:], rest, strict=True)}
            self._computed = weakref.ref(x), _state(x), waiting
        return found


def _state(x: torch.Tensor) -> tuple[int, bool]:
    """What changes with its numbers, and whether operations are recorded."""
    import torch

    return x._version, torch.is_grad_enabled()


def _goes_with(first: Any, first_name: str, layer: Any, x: torch.Tensor) -> str | None:
    """The adapter of a layer that may be computed before the layer is called, together with the first."""
    ours = getattr(vars(layer).get("forward"), "func", None) is _forward
    name = _only_adapter(layer) if ours and not layer._forward_pre_hooks else None
    if name is None or not _is_sum_of_products(layer, name, x):
        return None
    pairs = ((first.lora_A, layer.lora_A), (first.lora_B, layer.lora_B))
    alike = all(_kind(one[first_name].weight) == _kind(other[name].weight) for one, other in pairs)
    return name if alike else None


def _kind(weight: torch.Tensor) -> tuple[torch.dtype, bool]:
    return weight.dtype, weight.requires_grad
