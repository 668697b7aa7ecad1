"""A double of the flash-attn package: its functions and arguments, computed by torch's scaled dot product attention.

The real package needs a GPU and a compiler for it. This one has what transformers imports of it (5.17 to 5.24), refuses
what the real one refuses, and counts its calls.
Shapes as in flash-attn: B rows, T queries, S keys, H heads, D width of a head; varlen without B, N documents.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

__version__ = "2.8.3"
calls = {"flash_attn_func": 0, "flash_attn_varlen_func": 0}


def flash_attn_func(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """(B, T, H, D) from q (B, T, H, D) and k, v (B, S, heads of keys, D)."""
    calls["flash_attn_func"] += 1
    return _attend(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap)


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """(T, H, D) from q (T, H, D) and k, v (S, heads of keys, D), cut at cu_seqlens, (N + 1,) int32 each."""
    calls["flash_attn_varlen_func"] += 1
    for cu_seqlens, longest, states in ((cu_seqlens_q, max_seqlen_q, q), (cu_seqlens_k, max_seqlen_k, k)):
        if type(longest) is not int:
            raise RuntimeError(f"Expected a value of type 'int' for max_seqlen but instead found {type(longest)}.")
        if cu_seqlens.dtype != torch.int32:
            raise RuntimeError("cu_seqlens must have dtype int32")
        if cu_seqlens.device != q.device:
            raise RuntimeError("cu_seqlens must be on CUDA")
        if cu_seqlens.ndim != 1 or not cu_seqlens.is_contiguous():
            raise RuntimeError("cu_seqlens must have shape (batch_size + 1) and be contiguous")
        if int(cu_seqlens[-1]) != len(states) or int(cu_seqlens.diff().max()) > int(longest):
            raise RuntimeError("cu_seqlens do not fit the states, or max_seqlen is too small")
    queries, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    parts = [
        _attend(*(one[None] for one in document), dropout_p, softmax_scale, causal, window_size, softcap)[0]
        for document in zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    ]
    return torch.cat(parts)


def flash_attn_with_kvcache(*args, **kwargs):
    """Paged inference, which training never asks for."""
    raise NotImplementedError("the double has no key-value cache")


def _attend(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap):
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    if not q.dtype == k.dtype == v.dtype:
        raise RuntimeError("query, key and value must have the same dtype")
    if not q.device == k.device == v.device:
        raise RuntimeError("Input tensor must be on CUDA")
    if q.shape[-1] > 256 or q.shape[-1] != k.shape[-1] or q.shape[2] % k.shape[2]:
        raise RuntimeError("head dimension at most 256, and a number of heads divisible by that of the keys")
    if softcap:
        raise NotImplementedError("the double has no softcap")
    queries, keys = q.shape[1], k.shape[1]
    # The mask is aligned to the last query and the last key; the window's bounds are inclusive
    ends = torch.arange(queries, device=q.device)[:, None] + keys - queries
    distance = ends - torch.arange(keys, device=q.device)[None, :]
    left, right = window_size
    mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
    if causal:
        mask &= distance >= 0
    if left >= 0:
        mask &= distance <= left
    if right >= 0:
        mask &= distance >= -right
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    output = scaled_dot_product_attention(q, k, v, mask, dropout_p, scale=softmax_scale)
    return output.transpose(1, 2)
