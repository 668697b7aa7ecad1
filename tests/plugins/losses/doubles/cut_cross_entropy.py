"""A double of cut-cross-entropy 25.1.1: its function and arguments, computed from whole logits by torch.

The real kernels need an NVIDIA GPU. This one refuses what they refuse (cce.py, cce_backward.py) and counts its calls.
"""

from __future__ import annotations

import torch

calls = []


def linear_cross_entropy(
    e, c, targets, ignore_index=-100, softcap=None, reduction="mean", shift=False, filter_eps="high", impl="cce"
):
    """The cross-entropy of e (N, W) @ c (V, W).T with targets (N,): a scalar, or (N,) for reduction "none"."""
    assert e.size()[0:-1] == targets.size()
    assert e.size(-1) == c.size(1)
    assert c.ndim == 2
    if torch.is_grad_enabled() and (e.requires_grad or c.requires_grad):
        assert e.dtype in (torch.float16, torch.bfloat16), "Backwards requires embeddings to be bf16 or fp16"
        assert c.dtype in (torch.float16, torch.bfloat16, torch.float32)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"Unknown reduction {reduction}")
    calls.append(reduction)
    with torch.autocast(e.device.type, enabled=False):
        logits = e.float() @ c.to(e.dtype).float().T
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return torch.nn.functional.cross_entropy(logits, targets, ignore_index=ignore_index, reduction=reduction)
