"""Padding taken away and put back, as in flash-attn's module of this name."""

from __future__ import annotations

import torch


def unpad_input(hidden_states, attention_mask, unused_mask=None):
    """(tokens, …) from (B, T, …), with indices, cu_seqlens, the longest row and the rows' lengths."""
    used = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = used.sum(dim=-1, dtype=torch.int32)
    indices = used.flatten().nonzero().flatten()
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return (
        hidden_states.flatten(0, 1)[indices],
        indices,
        cu_seqlens,
        int(lengths.max()),
        attention_mask.sum(dim=-1, dtype=torch.int32),
    )


def pad_input(hidden_states, indices, batch, seqlen):
    """(B, T, …) from (tokens, …); padding is zero."""
    output = hidden_states.new_zeros(batch * seqlen, *hidden_states.shape[1:])
    output[indices] = hidden_states
    return output.unflatten(0, (batch, seqlen))
