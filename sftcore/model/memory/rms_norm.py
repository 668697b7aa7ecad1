"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) as one autograd function, with the same bits in fewer operations.

transformers computes it in float32, and autograd keeps each of the tensors on the way. The backward pass needs the
input and one number a token.

Shapes: N tokens, W width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def rms_norm(
    x_NW: torch.Tensor, weight_W: torch.Tensor, epsilon: float, check: Callable[[], None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The normed tensor (N, W) in x's dtype, times the weight, and what each token was scaled by, (N, 1) float32.

    Args:
        x_NW: of any number of leading dimensions.
        weight_W: in any dtype.
        epsilon: added to the mean of squares.
        check: called before the backward pass reads `x_NW` and `weight_W`; raises if they were changed since.
    """
    normed, scale = _function().apply(x_NW, weight_W, epsilon, check)
    return normed, scale


def _plain(x_NW: torch.Tensor, weight_W: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    as_float = x_NW.to(torch.float32, copy=True)
    scale = torch.rsqrt(as_float.pow(2).mean(-1, keepdim=True) + epsilon)
    scaled = as_float * scale if torch.is_grad_enabled() else as_float.mul_(scale)
    return weight_W * scaled.to(x_NW.dtype), scale


@functools.cache
def _function() -> Any:
    """The autograd function; made on demand, since torch is not imported with this module."""
    import torch

    class RmsNorm(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(
            ctx: Any, x_NW: torch.Tensor, weight_W: torch.Tensor, epsilon: float, check: Callable[[], None]
        ) -> tuple[torch.Tensor, torch.Tensor]:
            normed, scale = _plain(x_NW, weight_W, epsilon)
            ctx.save_for_backward(x_NW, weight_W, scale)
            ctx.epsilon, ctx.check = epsilon, check
            ctx.mark_non_differentiable(scale)
            ctx.set_materialize_grads(False)
            return normed, scale

        @staticmethod
        def backward(ctx: Any, grad_NW: torch.Tensor | None, *_: Any) -> tuple[torch.Tensor | None, ...]:
            ctx.check()
            x_NW, weight_W, scale = ctx.saved_tensors
            if grad_NW is None:
                return None, None, None, None
            of_x, of_weight, *_ = ctx.needs_input_grad
            if torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated itself
                given = [one for one, needed in ((x_NW, of_x), (weight_W, of_weight)) if needed]
                normed, _ = _plain(x_NW, weight_W, ctx.epsilon)
                found = iter(torch.autograd.grad(normed, given, grad_NW, create_graph=True))
                return next(found) if of_x else None, next(found) if of_weight else None, None, None
            as_float = x_NW.to(torch.float32, copy=True)
            weight_grad = None
            if of_weight:
                weight_grad = (grad_NW * (as_float * scale).to(x_NW.dtype)).sum_to_size(weight_W.shape)
            if not of_x:
                return None, weight_grad, None, None
            of_scaled = (grad_NW * weight_W).to(x_NW.dtype).to(torch.float32)
            of_scale = (of_scaled * as_float).sum(-1, keepdim=True)
            # what the mean of squares adds: 2 x times the gradient of the mean, by all that it is a mean of
            of_squares = -0.5 * of_scale * scale.pow(3) / x_NW.shape[-1]
            x_grad = of_scaled.mul_(scale).add_(as_float.mul_(2 * of_squares))
            return x_grad.to(x_NW.dtype), weight_grad, None, None

    return RmsNorm
