"""Causal attention in bfloat16 on a CPU, by products over blocks of queries.

torch's fused kernel for CPUs makes no use of the CPU's own bfloat16. Here scores are products in bfloat16 over the
heads that share their keys, for a block of queries and the keys that it may see; they are rounded to bfloat16, as in
transformers' eager attention. Of long documents only queries, keys and values are kept, and the backward pass computes
the weights again from them (compare FlashAttention, Dao et al. 2022, arXiv:2205.14135).

Forward and backward of 9 heads of 64 with 3 of keys, two cores with avx512_bf16, torch 2.13, against the fused kernel:
1.3 times as fast at 50 tokens, twice at 110, 1.5 times at 400, 1.3 times at 800 and 1.4 times at 2,048.

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
WIDTH = 32
"""Documents are padded to a multiple of it: torch's softmax in bfloat16 computes what is left of a row number by
number, and took 2.7 times as long for 90 keys as for 96. There are fewer shapes then, for each of which oneDNN makes
code, and documents of one shape share products, since those of a short one take longer to start than to compute."""
SCORES_AT_ONCE = 2**19
"""How many scores a block of such documents may have: 1 MiB of them, which caches hold."""

KEPT = 4
"""Weights of documents of up to this many times as many tokens as a head is wide are kept for the backward pass: they
take at most as many times the memory of the queries, and 2% of a step's time to compute again."""

Place = tuple[int, slice]
"""Row and span of a document, or of a part of it."""


def fits(query_BHTD: torch.Tensor, key_BKTD: torch.Tensor, features: Features) -> bool:
    """Whether `attend_in_half` computes this attention, and faster than torch's kernel."""
    import torch

    return (
        query_BHTD.device.type == "cpu"
        and query_BHTD.dtype == torch.bfloat16
        and query_BHTD.shape[2] == key_BKTD.shape[2]
        and query_BHTD.numel() > 0
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
    if documents is None:
        documents = [(row, slice(0, query_BHTD.shape[2])) for row in range(len(query_BHTD))]
    output: torch.Tensor = _function().apply(query_BHTD, key_BKTD, value_BKTD, scaling, features.window, documents)
    return output


def _groups(documents: Sequence[Place], num_heads: int) -> Iterator[tuple[list[Place], int]]:
    """Documents to compute together, and the length to which they are padded, which follows from their own alone."""
    of_length: dict[int, list[Place]] = {}
    for row, span in documents:
        padded = -(-(span.stop - span.start) // WIDTH) * WIDTH
        of_length.setdefault(padded, []).append((row, span))
    for padded, alike in of_length.items():
        at_once = max(SCORES_AT_ONCE // (num_heads * min(padded, BLOCK) * padded), 1)
        for first in range(0, len(alike), at_once):
            yield alike[first : first + at_once], padded


def _blocks(places: Sequence[Place], padded: int, window: int | None) -> Iterator[tuple[list[Place], slice, slice]]:
    """The queries of each block in the rows and within their documents, and the keys that any of them sees."""
    for start in range(0, padded, BLOCK):
        end = min(start + BLOCK, padded)
        first = 0 if window is None else max(0, start - window + 1) // WIDTH * WIDTH
        parts = [(row, slice(span.start + start, min(span.start + end, span.stop))) for row, span in places]
        yield parts, slice(start, end), slice(first, end)


def _stacked(states_BKTX: torch.Tensor, places: Sequence[Place], padded: int) -> torch.Tensor:
    """These parts of the rows one after the other, with zeros after each, (N * K, S, D)."""
    import torch

    after = (0, 0) * (states_BKTX.ndim - 3)
    parts = []
    for row, span in places:
        missing = padded - (span.stop - span.start)
        part_KTX = states_BKTX[row, :, span]
        parts.append(torch.nn.functional.pad(part_KTX, (*after, 0, missing)) if missing else part_KTX)
    stacked = torch.cat(parts) if len(parts) > 1 else parts[0]
    return stacked.reshape(len(stacked), -1, stacked.shape[-1]).contiguous()


def _put_back(target_BKTX: torch.Tensor, places: Sequence[Place], stacked: torch.Tensor) -> None:
    """Write what belongs to these parts of the rows, without what was made of the zeros after them."""
    shape = target_BKTX.shape
    for (row, span), one in zip(places, stacked.view(len(places), shape[1], -1, *shape[3:]), strict=True):
        target_BKTX[row, :, span] = one[:, : span.stop - span.start]


def _grouped(states_BTHD: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Heads of queries by the heads of keys that they share, (B, K, T, G, D)."""
    return states_BTHD.unflatten(2, (num_heads, -1)).transpose(1, 2)


def _hiding(query_BHTD: torch.Tensor, num_heads: int, window: int | None, longest: int) -> torch.Tensor:
    """What is added to scores: minus infinity where a query does not see a key, (BLOCK * G, A + BLOCK).

    The first query of a block stands at the key A; a block takes the columns that it has keys for.
    """
    import torch

    behind = (longest - 1) // BLOCK * BLOCK
    if window is not None:
        behind = min(behind, window + WIDTH)
    every = torch.ones(BLOCK, behind + BLOCK, dtype=torch.bool, device=query_BHTD.device)
    hidden = every.triu(behind + 1)
    if window is not None:
        hidden |= every.tril(behind - window)
    hidden = hidden.repeat_interleave(query_BHTD.shape[1] // num_heads, dim=0)
    return query_BHTD.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


def _keeps(padded: int, query_BHTD: torch.Tensor) -> bool:
    return padded <= KEPT * int(query_BHTD.shape[-1])


def _weights(
    query: torch.Tensor, key: torch.Tensor, queries: slice, keys: slice, scaling: float, hiding: torch.Tensor
) -> torch.Tensor:
    """The weights of a block, (N * K, Q * G, S)."""
    import torch

    behind = hiding.shape[1] - BLOCK
    own = hiding[: query.shape[1], behind - (queries.start - keys.start) : behind + keys.stop - queries.start]
    # added within the product: to scale and to fill afterwards took as long as the product
    return torch.baddbmm(own, query, key[:, keys].transpose(1, 2), alpha=scaling).softmax(dim=-1)


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
            documents: Sequence[Place],
        ) -> torch.Tensor:
            kept: list[torch.Tensor] = []
            ctx.scaling, ctx.window, ctx.documents = scaling, window, documents
            num_heads = key_BKTD.shape[1]
            hiding = _hiding(query_BHTD, num_heads, window, max(span.stop - span.start for _, span in documents))
            output_BTHD = query_BHTD.new_empty(*query_BHTD.transpose(1, 2).shape[:3], value_BKTD.shape[-1])
            all_queries, all_outputs = (_grouped(one, num_heads) for one in (query_BHTD.transpose(1, 2), output_BTHD))
            for places, padded in _groups(documents, query_BHTD.shape[1]):
                key, value = _stacked(key_BKTD, places, padded), _stacked(value_BKTD, places, padded)
                for parts, queries, keys in _blocks(places, padded, window):
                    query = _stacked(all_queries, parts, queries.stop - queries.start)
                    weights = _weights(query, key, queries, keys, scaling, hiding)
                    _put_back(all_outputs, parts, torch.bmm(weights, value[:, keys]))
                    if _keeps(padded, query_BHTD) and any(ctx.needs_input_grad):
                        kept.append(weights)
            ctx.save_for_backward(query_BHTD, key_BKTD, value_BKTD, *kept)
            return output_BTHD

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad_BTHD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            query_BHTD, key_BKTD, value_BKTD, *weights_kept = ctx.saved_tensors
            next_weights = iter(weights_kept)
            scaling, window = ctx.scaling, ctx.window
            documents, num_heads = ctx.documents, key_BKTD.shape[1]
            hiding = _hiding(query_BHTD, num_heads, window, max(span.stop - span.start for _, span in documents))
            query_BTHD = query_BHTD.transpose(1, 2)
            query_grad_BTHD = torch.empty_like(query_BTHD)
            all_queries, all_grads, query_grads = (
                _grouped(one, num_heads) for one in (query_BTHD, grad_BTHD, query_grad_BTHD)
            )
            key_grads, value_grads = torch.empty_like(key_BKTD), torch.empty_like(value_BKTD)
            for places, padded in _groups(documents, query_BHTD.shape[1]):
                key, value = _stacked(key_BKTD, places, padded), _stacked(value_BKTD, places, padded)
                # in float32, since several blocks add to a key
                key_grad, value_grad = (torch.zeros_like(one, dtype=torch.float32) for one in (key, value))
                for parts, queries, keys in _blocks(places, padded, window):
                    query, grad = (
                        _stacked(one, parts, queries.stop - queries.start) for one in (all_queries, all_grads)
                    )
                    if _keeps(padded, query_BHTD):
                        weights = next(next_weights)
                    else:
                        weights = _weights(query, key, queries, keys, scaling, hiding)
                    weights_grad = torch.bmm(grad, value[:, keys].transpose(1, 2))
                    scores_grad = torch.ops.aten._softmax_backward_data(weights_grad, weights, -1, weights.dtype)
                    _put_back(query_grads, parts, torch.bmm(scores_grad, key[:, keys]).mul_(scaling))
                    key_grad[:, keys].add_(torch.bmm(scores_grad.transpose(1, 2), query), alpha=scaling)
                    value_grad[:, keys].add_(torch.bmm(weights.transpose(1, 2), grad))
                _put_back(key_grads, places, key_grad)
                _put_back(value_grads, places, value_grad)
            return query_grad_BTHD.transpose(1, 2), key_grads, value_grads, None, None, None

    return AttendInHalf
