"""A double of flash-attn-3, the package's hopper interface: its functions and arguments, without a dropout.

It has what transformers imports of it (5.17 to 5.24), refuses what the real one refuses, and counts its calls.
"""

from __future__ import annotations

from flash_attn import _attend
from flash_attn import flash_attn_varlen_func as _varlen

calls = {"flash_attn_func": 0, "flash_attn_varlen_func": 0}


def flash_attn_func(
    q,
    k,
    v,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    """(B, T, H, D) from q (B, T, H, D) and k, v (B, S, heads of keys, D)."""
    calls["flash_attn_func"] += 1
    return _attend(q, k, v, 0.0, softmax_scale, causal, window_size, softcap)


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    seqused_q=None,
    seqused_k=None,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    """(T, H, D) from q (T, H, D) and k, v (S, heads of keys, D), cut at cu_seqlens, (N + 1,) int32 each."""
    calls["flash_attn_varlen_func"] += 1
    edges = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    return _varlen(q, k, v, *edges, 0.0, softmax_scale, causal, window_size, softcap)


def flash_attn_with_kvcache(*args, **kwargs):
    """Paged inference, which training never asks for."""
    raise NotImplementedError("the double has no key-value cache")
