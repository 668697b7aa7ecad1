"""Log-probabilities of labels, and what is told of the others: entropies, and whether a label ranks first.

Shapes: C positions of a chunk, V vocabulary; R positions at a time.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import torch

from sftcore.losses.asked_again import asked_plainly

SOFTMAX_AT_ONCE = 6 * 2**20
"""Bytes of float32 logits that a CPU's caches hold together with their softmax."""
NARROWEST, WIDEST = 32, 256
"""Logits of a block, of each of which a CPU takes the highest before it looks for the first of the highest ones."""
_of_thread = threading.local()
"""Holds the memory that `_with_softmax` works in, twice `SOFTMAX_AT_ONCE`."""


def label_log_probs(logits_CV: torch.Tensor, labels_C: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Per row, in float32: the label's log-probability (differentiable), the entropy in nats, and if it ranks first.

    Returns:
        (C,) float32, (C,) float32, (C,) bool.
    """
    if asked_plainly():
        log_probs_CV = logits_CV.float().log_softmax(-1)
        own_C = log_probs_CV.gather(-1, labels_C[:, None]).squeeze(-1)
        fixed_CV = log_probs_CV.detach()
        return own_C, -(fixed_CV.exp() * fixed_CV).sum(-1), fixed_CV.argmax(-1) == labels_C
    in_half = logits_CV.device.type == "cpu" and logits_CV.dtype in (torch.bfloat16, torch.float16)
    function = _OfHalfOnCpu if in_half else _LabelLogProbs
    found: tuple[torch.Tensor, ...] = function.apply(logits_CV, labels_C)
    return found


class _LabelLogProbs(torch.autograd.Function):
    """One exponential of the logits serves the probability, the entropy and the gradient."""

    @staticmethod
    def forward(ctx: Any, logits_CV: torch.Tensor, labels_C: torch.Tensor) -> Any:
        float_CV = logits_CV.float()
        top_C, best_C = _highest(float_CV)
        exp_CV = (float_CV - top_C[:, None]).exp_()
        sum_C = exp_CV.sum(-1)
        own_C = float_CV.gather(-1, labels_C[:, None]).squeeze(-1)
        log_z_C = sum_C.log() + top_C
        mean_C = _dots(exp_CV, float_CV) / sum_C
        correct_C = best_C == labels_C
        ctx.dtype = logits_CV.dtype
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(exp_CV, sum_C, labels_C)
        entropy_C = log_z_C - mean_C
        ctx.mark_non_differentiable(entropy_C, correct_C)
        return own_C - log_z_C, entropy_C, correct_C

    @staticmethod
    def backward(ctx: Any, grad_C: torch.Tensor, *_: Any) -> Any:
        exp_CV, sum_C, labels_C = ctx.saved_tensors
        grad_CV = exp_CV.mul_((-grad_C / sum_C)[:, None])
        grad_CV.scatter_add_(-1, labels_C[:, None], grad_C[:, None])
        return grad_CV.to(ctx.dtype), None


class _OfHalfOnCpu(torch.autograd.Function):
    """The same for logits in half precision on a CPU: a few rows at a time, and again for the gradient.

    Copies of a whole chunk in float32, or new ones for each few rows, waited for new pages. torch's softmax is faster
    than exponentials and sums, and wrong by some 20 units in the last place of float32, which half precision does not
    see.
    """

    @staticmethod
    def forward(ctx: Any, logits_CV: torch.Tensor, labels_C: torch.Tensor) -> Any:
        parts = []
        for rows in _rows_at_once(logits_CV):
            (float_RV, probs_RV), labels_R1 = _with_softmax(logits_CV[rows]), labels_C[rows, None]
            top_R, best_R = _highest(float_RV)
            log_z_R = top_R - probs_RV.gather(-1, best_R[:, None]).squeeze(-1).log()
            own_R = float_RV.gather(-1, labels_R1).squeeze(-1)
            mean_R = probs_RV.mul_(float_RV).sum(-1)
            parts.append((own_R - log_z_R, log_z_R - mean_R, best_R == labels_R1.squeeze(-1)))
        own_C, entropy_C, correct_C = map(torch.cat, zip(*parts, strict=True))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(logits_CV, labels_C)
        ctx.mark_non_differentiable(entropy_C, correct_C)
        return own_C, entropy_C, correct_C

    @staticmethod
    def backward(ctx: Any, grad_C: torch.Tensor, *_: Any) -> Any:
        logits_CV, labels_C = ctx.saved_tensors
        labels_C1, grad_C1, grad_CV = labels_C[:, None], grad_C[:, None], torch.empty_like(logits_CV)
        for rows in _rows_at_once(logits_CV):
            _, probs_RV = _with_softmax(logits_CV[rows])
            grad_CV[rows] = probs_RV.mul_(-grad_C1[rows]).scatter_add_(-1, labels_C1[rows], grad_C1[rows])
        return grad_CV, None


def _with_softmax(logits_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """These logits in float32, and their softmax, in the memory of this thread's last call."""
    # tensors that are shapes alone, and gradients that are to be differentiated, have memory of their own
    if type(logits_RV) is not torch.Tensor or torch._C._len_torch_dispatch_stack() or torch.is_grad_enabled():
        float_RV = logits_RV.float()
        return float_RV, float_RV.softmax(-1)
    shape, kept = logits_RV.shape, getattr(_of_thread, "copies", None)
    if kept is None or kept.shape[1] < shape[0] or kept.shape[2] != shape[1]:
        with torch.inference_mode(False):
            kept = _of_thread.copies = torch.empty(2, *shape, dtype=torch.float32, device="cpu")
    float_RV, probs_RV = kept[:, : shape[0]]
    return float_RV.copy_(logits_RV), torch.softmax(float_RV, -1, out=probs_RV)


def _rows_at_once(logits_CV: torch.Tensor) -> list[slice]:
    """Rows whose copies a CPU's caches hold, and one for each thread."""
    step = max(SOFTMAX_AT_ONCE // (4 * max(logits_CV.shape[-1], 1)), torch.get_num_threads())
    return [slice(start, start + step) for start in range(0, max(len(logits_CV), 1), step)]


def _highest(float_CV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest logit of each row, (C,), and where it is first."""
    width = math.gcd(float_CV.shape[-1], WIDEST)
    if float_CV.device.type != "cpu" or width < NARROWEST:
        top_C, best_C = float_CV.max(-1)
        return top_C, best_C
    # CPUs find the highest number five times as fast as where it is
    blocks_CBW = float_CV.unflatten(-1, (float_CV.shape[-1] // width, width))
    block_C11 = blocks_CBW.amax(-1).argmax(-1)[:, None, None]
    of_block_CW = blocks_CBW.take_along_dim(block_C11, 1).squeeze(1)
    top_C, best_C = of_block_CW.max(-1)
    return top_C, block_C11.flatten() * width + best_C


def _dots(one_CV: torch.Tensor, other_CV: torch.Tensor) -> torch.Tensor:
    """Of each row the sum of the products, (C,)."""
    if one_CV.device.type != "cpu":  # without a third tensor of this size
        return torch.bmm(one_CV[:, None], other_CV[:, :, None]).flatten()
    # products of matrices so narrow take several times as long here
    return torch.cat([(one_CV[rows] * other_CV[rows]).sum(-1) for rows in _rows_at_once(one_CV)])
