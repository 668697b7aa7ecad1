"""Causal attention in bfloat16 on a CPU, by products over blocks of queries.

torch's fused kernel for CPUs makes no use of the CPU's own bfloat16. Here scores are products in bfloat16 over the
heads that share their keys, for a block of queries and the keys that it may see; they are rounded to bfloat16, as in
transformers' eager attention. Only queries, keys and values are kept, and the backward pass computes the weights again
from them (compare FlashAttention, Dao et al. 2022, arXiv:2205.14135).

Forward and backward of 9 heads of 64 with 3 of keys, two cores with avx512_bf16, torch 2.13, against the fused kernel:
1.5 times as fast at 50 and at 800 tokens, twice at 110 and at 400, 1.5 times at 2,048.

Shapes: B rows, H heads of queries, K heads of keys, G heads of queries that share one, T tokens, Q queries of a block,
S keys that they see, D width of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from sftcore_plugins.attention._per_document import Features

BLOCK = 128
"""Queries at a time: fewer are slower products, more compute scores of keys that are hidden."""


def fits(query_BHTD: torch.Tensor, key_BKTD: torch.Tensor, features: Features) -> bool:
    """Whether `attend_in_half` computes this attention, and faster than torch's kernel."""
    import torch

    return (
        query_BHTD.device.type == "cpu"
        and query_BHTD.dtype == torch.bfloat16
        and query_BHTD.shape[2] == key_BKTD.shape[2]
        and features.causal
        and not features.dropout
        and features.softcap is None
        and features.sinks_H is None
        and not torch.compiler.is_compiling()
        and _cpu_has_bfloat16()
    )


@functools.cache
def _cpu_has_bfloat16() -> bool:
    """Whether products in bfloat16 go to oneDNN; else torch computes them one by one."""
    import torch

    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return asked is not None and bool(torch.backends.mkldnn.is_available()) and bool(asked())


def attend_in_half(
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    features: Features,
    documents: Sequence[tuple[int, slice]] | None = None,
) -> torch.Tensor:
    """(B, T, H, D) bfloat16; what `fits` says must hold.

    Args:
        query_BHTD, key_BKTD, value_BKTD: states in bfloat16.
        features: of the layer.
        documents: row and span of each, which fill the rows; None where each row is one.
    """
    scaling = features.scaling if features.scaling is not None else query_BHTD.shape[-1] ** -0.5
    places = [(slice(row, row + 1), span) for row, span in documents or ()]
    places = places or [(slice(None), slice(0, query_BHTD.shape[2]))]
    output: torch.Tensor = _function().apply(query_BHTD, key_BKTD, value_BKTD, scaling, features.window, places)
    return output


def _blocks(length: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """The queries of each block, and the keys that any of them sees."""
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        yield slice(start, end), slice(0 if window is None else max(0, start - window + 1), end)


def _ahead() -> torch.Tensor:
    """Which keys lie ahead of which queries, where both begin at the same token: (Q, Q) bool."""
    import torch

    return torch.ones(BLOCK, BLOCK, dtype=torch.bool, device="cpu").triu(1)


def _weights(
    query_BKGTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    queries: slice,
    keys: slice,
    scaling: float,
    window: int | None,
    ahead_QQ: torch.Tensor,
) -> torch.Tensor:
    """The weights of a block, (B, K, G * Q, S)."""
    num_shared, num_queries = query_BKGTD.shape[2], queries.stop - queries.start
    scores = (query_BKGTD[:, :, :, queries].flatten(2, 3) @ key_BKTD[:, :, keys].transpose(2, 3)).mul_(scaling)
    scores_BKGQS = scores.unflatten(2, (num_shared, num_queries))
    ahead_QQ = ahead_QQ[:num_queries, :num_queries]
    # only the last keys can lie ahead of a query of the block, and only the first ones before its window
    scores_BKGQS[..., -num_queries:].masked_fill_(ahead_QQ, float("-inf"))
    if window is not None:
        before_QQ = ahead_QQ.new_ones(ahead_QQ.shape).tril(queries.start - keys.start - window)[:, : scores.shape[-1]]
        scores_BKGQS[..., :num_queries].masked_fill_(before_QQ, float("-inf"))
    return scores.softmax(dim=-1)


@functools.cache
def _function() -> Any:
    """The autograd function; made on demand, since torch is not imported with this module."""
    import torch
    from torch.autograd.function import once_differentiable

    class AttendInHalf(torch.autograd.Function):  # type: ignore[misc]
        """All documents in one: of short ones, slices and joined gradients of each took as long as its products."""

        @staticmethod
        def forward(
            ctx: Any,
            query_BHTD: torch.Tensor,
            key_BKTD: torch.Tensor,
            value_BKTD: torch.Tensor,
            scaling: float,
            window: int | None,
            places: Sequence[tuple[slice, slice]],
        ) -> torch.Tensor:
            ctx.save_for_backward(query_BHTD, key_BKTD, value_BKTD)
            ctx.scaling, ctx.window, ctx.places = scaling, window, places
            num_rows, num_heads, length, _ = query_BHTD.shape
            grouped = (key_BKTD.shape[1], -1)
            output_BTHD = query_BHTD.new_empty(num_rows, length, num_heads, value_BKTD.shape[-1])
            ahead_QQ = _ahead()
            all_queries, all_outputs = (one.unflatten(1, grouped) for one in (query_BHTD, output_BTHD.transpose(1, 2)))
            for rows, span in places:
                query_BKGTD, output_BKGTD = all_queries[rows, :, :, span], all_outputs[rows, :, :, span]
                key, value = key_BKTD[rows, :, span], value_BKTD[rows, :, span]
                for queries, keys in _blocks(span.stop - span.start, window):
                    weights = _weights(query_BKGTD, key, queries, keys, scaling, window, ahead_QQ)
                    block = weights @ value[:, :, keys]
                    output_BKGTD[:, :, :, queries] = block.unflatten(2, (-1, queries.stop - queries.start))
            return output_BTHD

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad_BTHD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            query_BHTD, key_BKTD, value_BKTD = ctx.saved_tensors
            scaling, window = ctx.scaling, ctx.window
            grouped = (key_BKTD.shape[1], -1)
            all_queries, all_grads = (one.unflatten(1, grouped) for one in (query_BHTD, grad_BTHD.transpose(1, 2)))
            query_grads = torch.empty_like(all_queries)
            # in float32, since several blocks add to a key
            key_grads, value_grads = (torch.zeros_like(one, dtype=torch.float32) for one in (key_BKTD, value_BKTD))
            ahead_QQ = _ahead()
            for rows, span in ctx.places:
                query_BKGTD, grad_BKGTD, query_grad = (
                    one[rows, :, :, span] for one in (all_queries, all_grads, query_grads)
                )
                key, value, key_grad, value_grad = (
                    one[rows, :, span] for one in (key_BKTD, value_BKTD, key_grads, value_grads)
                )
                for queries, keys in _blocks(span.stop - span.start, window):
                    weights = _weights(query_BKGTD, key, queries, keys, scaling, window, ahead_QQ)
                    grad = grad_BKGTD[:, :, :, queries].flatten(2, 3)
                    weights_grad = grad @ value[:, :, keys].transpose(2, 3)
                    scores_grad = torch.ops.aten._softmax_backward_data(weights_grad, weights, -1, weights.dtype)
                    block = (scores_grad @ key[:, :, keys]).mul_(scaling)
                    query_grad[:, :, :, queries] = block.unflatten(2, (-1, queries.stop - queries.start))
                    query = query_BKGTD[:, :, :, queries].flatten(2, 3)
                    key_grad[:, :, keys].add_(scores_grad.transpose(2, 3) @ query, alpha=scaling)
                    value_grad[:, :, keys].add_(weights.transpose(2, 3) @ grad)
            of_keys, of_values = key_grads.to(key_BKTD.dtype), value_grads.to(value_BKTD.dtype)
            return query_grads.flatten(1, 2), of_keys, of_values, None, None, None

    return AttendInHalf
