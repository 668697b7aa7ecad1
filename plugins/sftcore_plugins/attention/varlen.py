"""Attention that computes each document of a packed row by itself, with every feature that layers have.

Registered in transformers as `sftcore_varlen`; see `sftcore_plugins.attention._per_document` for what it is given.
Shapes: B rows, H heads, T tokens, S keys, D width of a head.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sftcore import AttentionBackend, ModelRequest, hookimpl, plugin
from sftcore.plugin_api import edges_of
from sftcore_plugins.attention._half_on_cpu import attend_in_half, fits
from sftcore_plugins.attention._per_document import (
    DocumentAttention,
    Features,
    attend_by_sdpa,
    causal_mask,
    documents_of,
)

if TYPE_CHECKING:
    import torch

NAME = "sftcore_varlen"
KERNEL_ARGUMENTS = {"scale", "window_size", "enable_gqa"}


@plugin
class Varlen:
    """Each document of a packed row attended by itself: cost grows with the sum of squared document lengths."""

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["attention"]

    @hookimpl
    def attention_backend(self, request: ModelRequest) -> AttentionBackend:
        return AttentionBackend(
            NAME,
            boundaries=True,
            # without torch's kernel a GPU would be given one document after the other
            speed={"cuda": 4.0 if _torch_has_kernel() else 0.0, "cpu": 2.0},
            compilable=False,  # dynamo of torch 2.14 stops with an error at the Python loop over documents
            calls=lambda: DOCUMENTS.calls,
            register=lambda: DOCUMENTS.register(NAME),
        )


def attend(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    mask: torch.Tensor | None,
    features: Features,
) -> torch.Tensor:
    """(B, T, H, D), by torch's fused kernels where they know all features of the layer."""
    if mask is None and fits(query_BHTD, key_BHSD, features):
        return attend_in_half(query_BHTD, key_BHSD, value_BHSD, features)
    if features.softcap is None and features.sinks_H is None:
        return attend_by_sdpa(module, query_BHTD, key_BHSD, value_BHSD, mask, features)
    num_queries, num_keys, window = query_BHTD.shape[2], key_BHSD.shape[2], features.window
    if mask is None and features.causal and num_queries > 1:
        mask = causal_mask(num_queries, window if num_queries == num_keys else None, query_BHTD.device)
    return _attend_by_products(query_BHTD, key_BHSD, value_BHSD, mask, features)


def _attend_by_products(
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    mask: torch.Tensor | None,
    features: Features,
) -> torch.Tensor:
    """Soft-cap and sinks (a learnt score of attending to nothing, one a head), which torch's kernels do not know."""
    import torch

    groups = query_BHTD.shape[1] // key_BHSD.shape[1]
    key_BHSD = key_BHSD.repeat_interleave(groups, dim=1)
    value_BHSD = value_BHSD.repeat_interleave(groups, dim=1)
    scaling = features.scaling if features.scaling is not None else query_BHTD.shape[-1] ** -0.5
    scores_BHTS = (query_BHTD @ key_BHSD.transpose(2, 3) * scaling).float()
    if features.softcap is not None:
        scores_BHTS = torch.tanh(scores_BHTS / features.softcap) * features.softcap
    if mask is not None:
        lowest = torch.finfo(scores_BHTS.dtype).min
        scores_BHTS = scores_BHTS.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores_BHTS + mask
    if features.sinks_H is not None:
        sinks_BHT1 = features.sinks_H.float().reshape(1, -1, 1, 1).expand(*scores_BHTS.shape[:3], 1)
        weights_BHTS = torch.cat([scores_BHTS, sinks_BHT1], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights_BHTS = scores_BHTS.softmax(dim=-1)
    weights_BHTS = torch.dropout(weights_BHTS.to(value_BHSD.dtype), features.dropout, train=features.dropout > 0)
    return (weights_BHTS @ value_BHSD).transpose(1, 2).contiguous()


# --- Torch's own kernel ---------------------------------------------------------------------------------------------
def _kernel_fits(query_BHTD: torch.Tensor, value_BHSD: torch.Tensor, features: Features) -> bool:
    import torch

    width = query_BHTD.shape[-1]
    return (
        query_BHTD.is_cuda
        and query_BHTD.dtype in (torch.float16, torch.bfloat16)
        and width == value_BHSD.shape[-1]
        and width % 8 == 0
        and width <= 256
        and features.causal
        and not features.dropout
        and features.softcap is None
        and features.sinks_H is None
        and torch.cuda.get_device_capability(query_BHTD.device) >= (8, 0)  # flash kernels need an Ampere
    )


def _torch_has_kernel() -> bool:
    """What `kernel` finds, by the version of torch alone, which is not imported for a plan."""
    numbers = importlib.metadata.version("torch").split(".")[:2]
    return tuple(map(int, numbers)) >= (2, 13)


@functools.cache
def kernel() -> Callable[..., Any] | None:
    """torch's varlen_attn where it takes a window, a scale and grouped heads (torch 2.13 does), else None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if set(inspect.signature(varlen_attn).parameters) >= KERNEL_ARGUMENTS else None


def _attend_whole(
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    longest: int,
    features: Features,
) -> torch.Tensor | None:
    """All documents at once, by torch's kernel on a GPU, or in bfloat16 on a CPU; None where neither takes them."""
    if fits(query_BHTD, key_BHSD, features):
        return attend_in_half(
            query_BHTD, key_BHSD, value_BHSD, features, documents_of(edges_of(cu_seq_lens), query_BHTD)
        )
    varlen_attn = kernel() if _kernel_fits(query_BHTD, value_BHSD, features) else None
    if varlen_attn is None:
        return None
    tokens = [states.transpose(1, 2).flatten(0, 1) for states in (query_BHTD, key_BHSD, value_BHSD)]
    output: torch.Tensor = varlen_attn(
        *tokens,
        cu_seq_lens,
        cu_seq_lens,
        longest,
        longest,
        scale=features.scaling,
        window_size=(-1 if features.window is None else features.window - 1, 0),
        enable_gqa=query_BHTD.shape[1] != key_BHSD.shape[1],
    )
    return output.unflatten(0, (len(query_BHTD), -1))


DOCUMENTS = DocumentAttention("varlen", attend, whole=_attend_whole)
