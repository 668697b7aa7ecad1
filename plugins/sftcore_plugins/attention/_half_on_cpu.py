"""Causal attention in bfloat16 on a CPU, by products over blocks of queries.

torch's fused kernel for CPUs makes no use of the CPU's own bfloat16. Here scores are products in bfloat16 over the
heads that share their keys, for a block of queries and the keys that it may see; they are rounded to bfloat16, as in
transformers' eager attention. Of long documents only queries, keys and values are kept, and the backward pass computes
the weights again from them (compare FlashAttention, Dao et al. 2022, arXiv:2205.14135).

Forward and backward of 9 heads of 64 with 3 of keys, two cores with avx512_bf16, torch 2.13, against the fused kernel:
1.9 times as fast at 50 tokens, 2.8 times at 110, and 1.8 times at 400, 800 and 2,048.

Shapes: B rows, H heads of queries, K heads of keys, G heads of queries that share one, T tokens, Q queries of a block,
S keys that they see, D width of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sftcore_plugins.attention._half_layout import Layout, Shape, layout_of

if TYPE_CHECKING:
    import torch

    from sftcore_plugins.attention._per_document import Features

KEPT = 4
"""Weights of documents of up to this many times as many tokens as a head is wide are kept for the backward pass: they
take at most as many times the memory of the queries, and 2% of a step's time to compute again."""


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
    rows, heads, tokens, width = query_BHTD.shape
    if documents is None:
        documents = [(row, slice(0, tokens)) for row in range(rows)]
    scaling = features.scaling if features.scaling is not None else width**-0.5
    layout = layout_of(documents, Shape(rows, tokens, heads, key_BKTD.shape[1], features.window))
    output: torch.Tensor = _function().apply(query_BHTD, key_BKTD, value_BKTD, scaling, layout)
    return output


def _taken(states_BHTD: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The states of these among (B * T * H), (_, D)."""
    return states_BHTD.transpose(1, 2).reshape(-1, states_BHTD.shape[-1]).index_select(0, places)


def _put_back(states: torch.Tensor, places: torch.Tensor, like_BHTD: torch.Tensor) -> torch.Tensor:
    """Of states whose places are these, those of each head and token, (B, T, H, D)."""
    rows, heads, tokens, _ = like_BHTD.shape
    return states.index_select(0, places).view(rows, tokens, heads, -1)


def _weights(query: torch.Tensor, key: torch.Tensor, scaling: float, hiding: torch.Tensor) -> torch.Tensor:
    """The weights of a block, (N * K, Q * G, S)."""
    import torch

    # added within the product: to scale and to fill afterwards took as long as the product
    return torch.baddbmm(hiding, query, key.transpose(1, 2), alpha=scaling).softmax(dim=-1)


def _multiply_into(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """The products of these matrices, written into the target."""
    import torch

    if torch._C._len_torch_dispatch_stack():  # selective checkpointing keeps products, which nobody may write into
        target.copy_(torch.bmm(left, right))
    else:
        torch.bmm(left, right, out=target)


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
            layout: Layout,
        ) -> torch.Tensor:
            heads, key_heads, width = query_BHTD.shape[1], key_BKTD.shape[1], query_BHTD.shape[-1]
            queries = _taken(query_BHTD, layout.queries)
            keys, values = _taken(key_BKTD, layout.keys), _taken(value_BKTD, layout.keys)
            outputs = queries.new_empty(len(queries), values.shape[-1])
            of_groups = zip(
                layout.groups,
                *(layout.parts(one, heads, key_heads) for one in (queries, outputs)),
                *(layout.parts(one, key_heads, key_heads) for one in (keys, values)),
                strict=True,
            )
            kept: list[torch.Tensor] = []
            for group, query, output, key, value in of_groups:
                keeps = any(ctx.needs_input_grad) and group.padded <= KEPT * width
                for some, seen, hiding in group.blocks:
                    weights = _weights(query[:, some], key[:, seen], scaling, hiding)
                    _multiply_into(output[:, some], weights, value[:, seen])
                    if keeps:
                        kept.append(weights)
            # not what was taken, which of many short documents is several times as large
            ctx.save_for_backward(query_BHTD, key_BKTD, value_BKTD, *kept)
            ctx.scaling, ctx.layout = scaling, layout
            return _put_back(outputs, layout.queries_back, query_BHTD)

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad_BTHD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            query_BHTD, key_BKTD, value_BKTD, *weights_kept = ctx.saved_tensors
            scaling, layout, next_weights = ctx.scaling, ctx.layout, iter(weights_kept)
            heads, key_heads, width = query_BHTD.shape[1], key_BKTD.shape[1], query_BHTD.shape[-1]
            queries = _taken(query_BHTD, layout.queries)
            keys, values = _taken(key_BKTD, layout.keys), _taken(value_BKTD, layout.keys)
            grads = _taken(grad_BTHD.transpose(1, 2), layout.queries)
            if len(layout.added):
                grads.index_fill_(0, layout.added, 0)
            query_grads, key_grads, value_grads = (torch.empty_like(one) for one in (queries, keys, values))
            of_groups = zip(
                layout.groups,
                *(layout.parts(one, heads, key_heads) for one in (queries, query_grads, grads)),
                *(layout.parts(one, key_heads, key_heads) for one in (keys, key_grads, values, value_grads)),
                strict=True,
            )
            for group, query, query_grad, grad, key, key_grad, value, value_grad in of_groups:
                alone = len(group.blocks) == 1
                if not alone:  # in float32, since several blocks add to a key
                    key_sum, value_sum = (torch.zeros_like(one, dtype=torch.float32) for one in (key, value))
                for some, seen, hiding in group.blocks:
                    some_query, some_grad, seen_key = query[:, some], grad[:, some], key[:, seen]
                    if group.padded <= KEPT * width:
                        weights = next(next_weights)
                    else:
                        weights = _weights(some_query, seen_key, scaling, hiding)
                    weights_grad = torch.bmm(some_grad, value[:, seen].transpose(1, 2))
                    scores_grad = torch.ops.aten._softmax_backward_data(weights_grad, weights, -1, weights.dtype)
                    torch.bmm(scores_grad, seen_key, out=query_grad[:, some])
                    if alone:
                        torch.bmm(scores_grad.transpose(1, 2), some_query, out=key_grad).mul_(scaling)
                        torch.bmm(weights.transpose(1, 2), some_grad, out=value_grad)
                    else:
                        key_sum[:, seen] += torch.bmm(scores_grad.transpose(1, 2), some_query)
                        value_sum[:, seen] += torch.bmm(weights.transpose(1, 2), some_grad)
                if not alone:
                    key_grad.copy_(key_sum.mul_(scaling))
                    value_grad.copy_(value_sum)
            return (
                _put_back(query_grads.mul_(scaling), layout.queries_back, query_BHTD).transpose(1, 2),
                _put_back(key_grads, layout.keys_back, key_BKTD).transpose(1, 2),
                _put_back(value_grads, layout.keys_back, value_BKTD).transpose(1, 2),
                None,
                None,
            )

    return AttendInHalf
