"""The sums of linear layers and LoRA's low-rank products, as one autograd function for all layers that share an input.

Copies of the input in another dtype, its products with A, and its gradient are made once for all of them.

Shapes: N tokens, I inputs, O outputs of a layer, R its rank, S the ranks of all layers together.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

ROWS_AT_ONCE = 512
"""Rows whose copies in float32 are made together on a CPU: all 2,048 of a packed block took up to twice as long."""


class LowRank(NamedTuple):
    """The tensors of one layer: `base`, or instead of it weight and bias of a linear layer that is not trained."""

    base: torch.Tensor | None  # (..., O)
    weight_OI: torch.Tensor | None
    bias_O: torch.Tensor | None
    a_RI: torch.Tensor
    b_OR: torch.Tensor


TENSORS = len(LowRank._fields)
BEFORE = 3
"""Other arguments of the function, before the tensors of the layers."""


def add_low_rank(
    x: torch.Tensor, dtype: torch.dtype, scalings: Sequence[float], layers: Sequence[LowRank]
) -> tuple[torch.Tensor, ...]:
    """For each layer base + scaling * x A^T B^T (..., O), multiplied in dtype, in the dtype of base.

    Without `base`, it is x W^T plus the bias: it is added to in place, and x gets the gradient of both.
    """
    found: tuple[torch.Tensor, ...] = _function().apply(x, dtype, scalings, *(one for layer in layers for one in layer))
    return found


@functools.cache
def _function() -> Any:
    """The autograd function; made on demand, since torch is not imported with this module."""
    import torch

    from sftcore.plugin_api import product

    class AddLowRank(torch.autograd.Function):  # type: ignore[misc]
        """See `add_low_rank`; the tensors of all layers follow each other."""

        @staticmethod
        def forward(
            ctx: Any, x: torch.Tensor, dtype: torch.dtype, scalings: Sequence[float], *tensors: Any
        ) -> tuple[torch.Tensor, ...]:
            layers = [LowRank(*tensors[at : at + TENSORS]) for at in range(0, len(tensors), TENSORS)]
            x_NI, down_IS = x.reshape(-1, x.shape[-1]), _stacked(layers, dtype).T
            ups, ranks = [layer.b_OR.to(dtype).T for layer in layers], [len(layer.a_RI) for layer in layers]
            outs, inner = [_base(x_NI, layer) for layer in layers], []
            with _without_autocast(x):
                for some_x, *some_outs in _rows_at_once(dtype, x_NI, *outs):
                    inner.append(product(some_x.to(dtype), down_IS))
                    parts = inner[-1].split(ranks, 1)
                    for out, part, up_RO, scaling in zip(some_outs, parts, ups, scalings, strict=True):
                        _add_product(out, part, up_RO, scaling)
            kept = [one for layer in layers for one in (layer.weight_OI, layer.a_RI, layer.b_OR)]
            ctx.save_for_backward(x, _joined(inner, 0), *kept)
            ctx.scalings, ctx.dtype = scalings, dtype
            ctx.set_materialize_grads(False)  # what is not used gets no gradient, which is not a gradient of zero
            # as torch's own linear does: what a function gives as a view may not be changed in place
            return tuple(torch.ops.aten._unsafe_view(out, [*x.shape[:-1], out.shape[-1]]) for out in outs)

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
            x, inner_NS, *kept = ctx.saved_tensors
            x_NI, inners = x.reshape(-1, x.shape[-1]), inner_NS.split([len(a_RI) for a_RI in kept[1::3]], 1)
            found: list[torch.Tensor | None] = [None] * len(ctx.needs_input_grad)
            places, parts = [], []
            for at, grad in enumerate(grads):
                if grad is None:
                    continue
                first = BEFORE + TENSORS * at
                found[first] = grad
                places.append(first)
                of_a, of_b = ctx.needs_input_grad[first + 3 : first + 5]
                grad_NO, (weight_OI, a_RI, b_OR) = grad.reshape(-1, grad.shape[-1]), kept[3 * at : 3 * at + 3]
                parts.append(_Part(grad_NO, weight_OI, a_RI, b_OR, inners[at], ctx.scalings[at], of_a, of_b))
            if not parts:
                return tuple(found)
            # create_graph=True: the gradient is to be differentiated itself
            gradients = _differentiable if torch.is_grad_enabled() else _gradients
            with _without_autocast(x):
                grad_x_NI, *others = gradients(x_NI, ctx.dtype, parts, of_x=ctx.needs_input_grad[0])
            found[0] = None if grad_x_NI is None else grad_x_NI.view_as(x)
            for first, of_a_and_b in zip(places, zip(*others, strict=True), strict=True):
                found[first + 3 : first + 5] = of_a_and_b
            return tuple(one if needed else None for one, needed in zip(found, ctx.needs_input_grad, strict=True))

    return AddLowRank


class _Part(NamedTuple):
    """What the gradients through one layer are computed from."""

    grad_NO: torch.Tensor
    weight_OI: torch.Tensor | None
    a_RI: torch.Tensor
    b_OR: torch.Tensor
    inner_NR: torch.Tensor
    scaling: float
    of_a: bool
    of_b: bool


Gradients = tuple["torch.Tensor | None", Sequence["torch.Tensor | None"], Sequence["torch.Tensor | None"]]
"""Of x (N, I), and for each layer of A and B."""


def _gradients(x_NI: torch.Tensor, dtype: torch.dtype, parts: Sequence[_Part], *, of_x: bool) -> Gradients:
    from sftcore.plugin_api import product

    down_SI, ups = _stacked(parts, dtype), [part.b_OR.to(dtype) for part in parts]
    grad_x_NI = _through_frozen(x_NI, parts) if of_x else None
    grad_a_SI: torch.Tensor | None = None
    grads_b_RO: list[torch.Tensor | None] = [None] * len(parts)
    found_NI = x_NI if grad_x_NI is None else grad_x_NI  # any rows, where none are written
    of_parts = [one for part in parts for one in (part.grad_NO, part.inner_NR)]
    for some_x, some_found, *others in _rows_at_once(dtype, x_NI, found_NI, *of_parts):
        narrow = []
        for at, part in enumerate(parts):
            wide, inner = others[2 * at].to(dtype), others[2 * at + 1]
            narrow.append(product(wide, ups[at]).mul_(part.scaling))
            if part.of_b:
                # not (O, R) at once: of narrow results, CPUs compute wide ones faster
                grads_b_RO[at] = _sum(grads_b_RO[at], product(inner.T, wide))
        narrow_NS = _joined(narrow, 1)
        if grad_x_NI is not None:
            _add_product(some_found, narrow_NS, down_SI, 1.0)
        if any(part.of_a for part in parts):
            grad_a_SI = _sum(grad_a_SI, product(narrow_NS.T, some_x.to(dtype)))
    of_a = [None] * len(parts) if grad_a_SI is None else grad_a_SI.split([len(part.a_RI) for part in parts])
    if len(parts) > 1:  # each in memory of its own, which is given back with it
        of_a = [None if one is None else one.clone() for one in of_a]
    of_b = [None if one is None else one.mul_(part.scaling).T for one, part in zip(grads_b_RO, parts, strict=True)]
    return (
        grad_x_NI,
        [None if one is None else one.to(part.a_RI.dtype) for one, part in zip(of_a, parts, strict=True)],
        [None if one is None else one.to(part.b_OR.dtype).contiguous() for one, part in zip(of_b, parts, strict=True)],
    )


def _differentiable(x_NI: torch.Tensor, dtype: torch.dtype, parts: Sequence[_Part], *, of_x: bool) -> Gradients:
    """The same in operations of torch's own, none of them in place."""
    import torch

    tall_NI, grad_x_NI, of_a, of_b = x_NI.to(dtype), torch.zeros_like(x_NI), [], []
    for part in parts:
        wide_NO, down_RI, up_OR = (one.to(dtype) for one in (part.grad_NO, part.a_RI, part.b_OR))
        narrow_NR = (wide_NO @ up_OR) * part.scaling
        grad_x_NI = grad_x_NI + (narrow_NR @ down_RI).to(x_NI.dtype)
        if part.weight_OI is not None:
            grad_x_NI = grad_x_NI + part.grad_NO @ part.weight_OI
        of_a.append((narrow_NR.T @ tall_NI).to(part.a_RI.dtype))
        of_b.append((wide_NO.T @ (tall_NI @ down_RI.T) * part.scaling).to(part.b_OR.dtype))
    return grad_x_NI if of_x else None, of_a, of_b


def _base(x_NI: torch.Tensor, layer: LowRank) -> torch.Tensor:
    """What a layer gives without its adapter, (N, O), in memory that may be written into."""
    import torch

    from sftcore.plugin_api import product

    if layer.weight_OI is not None:
        return product(x_NI, layer.weight_OI.T, layer.bias_O)
    assert layer.base is not None
    return layer.base.clone(memory_format=torch.contiguous_format).view(-1, layer.base.shape[-1])


def _through_frozen(x_NI: torch.Tensor, parts: Sequence[_Part]) -> torch.Tensor:
    """The gradient of x through the weights that are not trained."""
    import torch

    from sftcore.plugin_api import product

    found_NI: torch.Tensor | None = None
    for part in parts:
        if part.weight_OI is None:
            continue
        if found_NI is None:
            found_NI = product(part.grad_NO, part.weight_OI)
        elif found_NI.dtype == torch.float32:
            found_NI += product(part.grad_NO, part.weight_OI)
        else:
            found_NI.addmm_(part.grad_NO, part.weight_OI)  # rounds once
    return torch.zeros_like(x_NI) if found_NI is None else found_NI


def _stacked(layers: Sequence[LowRank] | Sequence[_Part], dtype: torch.dtype) -> torch.Tensor:
    """A of all layers, (S, I)."""
    return _joined([layer.a_RI.to(dtype) for layer in layers], 0)


def _joined(parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    import torch

    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim)


def _without_autocast(x: torch.Tensor) -> Any:
    import torch

    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


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
