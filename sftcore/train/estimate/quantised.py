"""Layers of the sizes that bitsandbytes makes of linear ones, with the temporary copies of its products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_BLOCK = 64
_NESTED_BLOCK = 256


class _Product(torch.autograd.Function):
    """x (..., I) times a weight that is unpacked for the product, once forward and once backward (arXiv:2305.14314)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, shape: tuple[int, int], keeps: bool) -> torch.Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape
        # as an attribute, which checkpointing does not take away
        ctx.kept = x if keeps else None
        return torch.nn.functional.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] @ gradients[0].new_empty(ctx.shape), None, None, None


class QuantisedLinear(torch.nn.Linear):
    """A linear layer whose weight is packed: what `quantise` puts in the place of an ordinary one."""

    packed: torch.Tensor
    compute_dtype: torch.dtype | None
    keeps_input: bool
    """bitsandbytes' product with 8 bits keeps its input, whether it is needed or not (0.48 to 0.50)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., I) to (..., O) of the same dtype."""
        given = x.dtype
        x = x if self.compute_dtype is None else x.to(self.compute_dtype)
        shape = self.out_features, self.in_features
        found: torch.Tensor = _Product.apply(x, self.packed, shape, self.keeps_input)
        found = found if self.bias is None else found + self.bias.to(found.dtype)
        return found.to(given)


def quantise(model: Any, wanted: Mapping[str, Any]) -> None:
    """Put packed layers in the place of those that transformers has bitsandbytes quantise: all linear but the head.

    Args:
        model: on torch's meta device.
        wanted: the fields of a BitsAndBytesConfig.
    """
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = wanted.get("llm_int8_skip_modules") or get_keys_to_not_convert(model)
    four = bool(wanted.get("load_in_4bit"))
    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or any(name == one or name.startswith(f"{one}.") for one in kept):
            continue
        module.__class__ = QuantisedLinear
        size, device = module.weight.numel(), module.weight.device
        scales = (
            _scales(size, double=bool(wanted.get("bnb_4bit_use_double_quant"))) if four else 4 * module.out_features
        )
        packed = size // 2 if four else size
        module.packed = torch.empty(packed + scales, dtype=torch.uint8, device=device)
        module.keeps_input = not four
        given = wanted.get("bnb_4bit_compute_dtype") if four else None
        module.compute_dtype = getattr(torch, given) if isinstance(given, str) else given
        weight = torch.empty(0, module.in_features, dtype=module.weight.dtype, device=device)
        module.weight = torch.nn.Parameter(weight, requires_grad=False)


def _scales(size: int, *, double: bool) -> int:
    """Bytes of the scales: a float32 for each block, or with a second quantisation a byte, and a float32 for 256."""
    blocks = -(-size // _BLOCK)
    return blocks + 4 * -(-blocks // _NESTED_BLOCK) if double else 4 * blocks
