"""Attention that computes each document of a packed row by itself.

Registered in transformers as `sftcore_varlen`. It takes the boundaries of documents by the keyword arguments that
flash attention takes (`cu_seq_lens_q` and its three companions); without them it is transformers' sdpa, with sdpa's
own mask: padded evaluation and generation work, and packed rows are refused.
Shapes: B rows, H heads, T tokens, S keys, D width of a head.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore import AttentionBackend, ModelError, ModelRequest, hookimpl, plugin

if TYPE_CHECKING:
    import torch

NAME = "sftcore_varlen"
KERNEL_ARGUMENTS = {"scale", "window_size", "enable_gqa"}
PLAIN_MASKS = {"causal_mask_function", "sliding_window_overlay", "packed_sequence_mask_function"}
MASK_COMBINERS = {"and_masks", "remap_positions_for_packed_sequence"}
"""transformers.masking_utils: the functions that say causal, window and packing, and those that join them."""

_calls = 0


@plugin
class Varlen:
    """Each document of a packed row attended by itself: cost grows with the sum of squared document lengths."""

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["attention"]

    @hookimpl
    def attention_backend(self, request: ModelRequest) -> AttentionBackend:
        from transformers import AttentionInterface, AttentionMaskInterface

        AttentionInterface.register(NAME, attend_documents)
        AttentionMaskInterface.register(NAME, mask_if_needed)
        return AttentionBackend(NAME, boundaries=True, calls=lambda: _calls)


@frozen
class Features:
    """What a layer asks of its attention besides the scaled product."""

    dropout: float
    scaling: float | None
    window: int | None
    softcap: float | None
    sinks_H: torch.Tensor | None
    causal: bool


# --- The two functions that transformers calls ----------------------------------------------------------------------
def attend_documents(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    position_ids: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of one layer: (B, T, H, D). Keys and values may have fewer heads than the queries."""
    import torch

    if position_bias is not None:
        raise ModelError(
            f'attention "varlen" has no position bias, which {type(module).__name__} uses.',
            fix='Choose attention "sdpa" or "eager".',
        )
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    features = Features(dropout, scaling, sliding_window, softcap, s_aux, causal)
    packed = attention_mask is not None and _is_packing_sign(attention_mask, query_BHTD)
    if cu_seq_lens_q is None:
        if packed or (attention_mask is None and _restarts(position_ids, key_BHSD)):
            raise ModelError(
                f'attention "varlen" was given a packed row without boundaries in {type(module).__name__}.',
                fix="Pass cu_seq_lens_q, cu_seq_lens_k, max_length_q and max_length_k to the model's forward; a model "
                'that does not hand them on needs attention "sdpa".',
            )
        return attend(module, query_BHTD, key_BHSD, value_BHSD, attention_mask, features), None
    _count()
    mask = None if packed else attention_mask
    if mask is None and _kernel_fits(query_BHTD, value_BHSD, features):
        longest = max_length_q if max_length_q is not None else int(cu_seq_lens_q.diff().max())
        return _attend_by_kernel(query_BHTD, key_BHSD, value_BHSD, cu_seq_lens_q, longest, features), None
    parts = [
        attend(
            module,
            query_BHTD[row, :, span],
            key_BHSD[row, :, span],
            value_BHSD[row, :, span],
            None if mask is None else mask.expand(len(query_BHTD), -1, -1, -1)[row, :, span, span],
            features,
        )
        for row, span in _documents(cu_seq_lens_q, query_BHTD)
    ]
    return torch.cat(parts, dim=1).reshape(*query_BHTD.shape[:1], -1, *parts[0].shape[2:]), None


def mask_if_needed(
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    attention_mask: torch.Tensor | None = None,
    mask_function: Callable[..., Any] | None = None,
    device: Any = "cpu",
    config: Any = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> torch.Tensor | None:
    """The mask that a layer needs: none where causality, window and boundaries say all; else that of sdpa.

    A packed row gets a sign instead of a mask, (1, 1, 1, 1) bool: `attend_documents` then insists on boundaries.

    Raises:
        ModelError: the model would put its own attention, not causal by itself, in the place of `attend_documents`.
    """
    import torch
    from transformers.masking_utils import sdpa_mask

    if config is not None:
        _refuse_others(type(config).__module__, type(config).__name__)
    parts = _parts_of(mask_function) if mask_function is not None else set()
    whole = attention_mask is None and q_length == kv_length and isinstance(q_offset, int) and q_offset == 0
    if whole and parts and parts <= PLAIN_MASKS:
        if "packed_sequence_mask_function" in parts:
            return torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=device)
        if allow_is_causal_skip:  # else the model itself reads the mask, as DeepSeek-V3.2's indexer does
            return None
    if mask_function is not None:
        kwargs["mask_function"] = mask_function
    mask: torch.Tensor | None = sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        attention_mask=attention_mask,
        device=device,
        allow_is_causal_skip=allow_is_causal_skip,
        **kwargs,
    )
    return mask


# --- One document, or rows as they are ------------------------------------------------------------------------------
def attend(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    mask: torch.Tensor | None,
    features: Features,
) -> torch.Tensor:
    """(B, T, H, D), by torch's fused kernels where they know all features of the layer."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    num_queries, num_keys = query_BHTD.shape[2], key_BHSD.shape[2]
    window = features.window
    if mask is None and features.causal and num_queries == num_keys and window is not None and window < num_keys:
        mask = _causal(num_queries, window, query_BHTD.device)
    if features.softcap is None and features.sinks_H is None:
        output: torch.Tensor = sdpa_attention_forward(
            module,
            query_BHTD,
            key_BHSD,
            value_BHSD,
            mask,
            dropout=features.dropout,
            scaling=features.scaling,
            is_causal=features.causal,
        )[0]
        return output
    if mask is None and features.causal and num_queries > 1:
        mask = _causal(num_queries, None, query_BHTD.device)
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


def _causal(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """(T, T) bool; a token sees `window` tokens, itself included."""
    import torch

    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


def _documents(cu_seq_lens: torch.Tensor, query_BHTD: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Row and span of each document; boundaries count through the rows one after the other."""
    num_rows, num_tokens = query_BHTD.shape[0], query_BHTD.shape[2]
    edges = cu_seq_lens.tolist()
    if edges[0] != 0 or edges[-1] != num_rows * num_tokens:
        raise ModelError(
            f"cu_seq_lens_q runs from {edges[0]} to {edges[-1]}, and the batch has {num_rows} rows of {num_tokens} "
            "tokens.",
            fix="Let it begin with 0 and end with the number of tokens in the batch.",
        )
    for start, end in itertools.pairwise(edges):
        row, first = divmod(start, num_tokens)
        if end <= start or first + end - start > num_tokens:
            raise ModelError(
                f"cu_seq_lens_q has a document from {start} to {end}, in rows of {num_tokens} tokens.",
                fix="A document has at least one token and ends in the row in which it begins.",
            )
        yield slice(row, row + 1), slice(first, first + end - start)


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
        and kernel() is not None
    )


@functools.cache
def kernel() -> Callable[..., Any] | None:
    """torch's varlen_attn where it takes a window, a scale and grouped heads (torch 2.13 does), else None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if set(inspect.signature(varlen_attn).parameters) >= KERNEL_ARGUMENTS else None


def _attend_by_kernel(
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    longest: int,
    features: Features,
) -> torch.Tensor:
    varlen_attn = kernel()
    assert varlen_attn is not None
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


# --- Signs of packing -----------------------------------------------------------------------------------------------
def _is_packing_sign(mask: torch.Tensor, query_BHTD: torch.Tensor) -> bool:
    return tuple(mask.shape) == (1, 1, 1, 1) and query_BHTD.shape[2] > 1


def _restarts(position_ids: torch.Tensor | None, key_BHSD: torch.Tensor) -> bool:
    """Whether positions restart within a row, in a forward without cache."""
    if position_ids is None or position_ids.ndim != 2 or position_ids.shape[1] != key_BHSD.shape[2]:
        return False
    return bool((position_ids.diff(dim=-1) != 1).any())


def _parts_of(mask_function: Callable[..., Any]) -> set[str]:
    """The names of the functions of transformers.masking_utils that a mask function is made of."""
    name = getattr(mask_function, "__qualname__", "").partition(".")[0]
    if name not in MASK_COMBINERS:
        return {name}
    found: set[str] = set()
    for cell in mask_function.__closure__ or ():
        inner = cell.cell_contents
        for one in inner if isinstance(inner, tuple) else (inner,):
            if callable(one):
                found |= _parts_of(one)
    return found


@functools.cache
def _refuse_others(module_name: str, config_name: str) -> None:
    module = sys.modules.get(module_name.replace(".configuration_", ".modeling_"))
    source = inspect.getsource(module) if module is not None else ""
    # The same signs by which transformers tells whether a model's attention can be set (5.17 to 5.24)
    if re.search(r"^class \w*Attention\w*\(nn\.Module\):", source, re.MULTILINE) and not re.search(
        r"\bALL_ATTENTION_FUNCTIONS\b", source
    ):
        raise ModelError(
            f'models of {config_name} compute their own attention and never ask for "varlen".',
            fix='Choose attention "sdpa" or "eager".',
        )


def _count() -> None:
    import torch

    global _calls
    if not torch.compiler.is_compiling():  # a counter would make the compiler start anew with every step
        _calls += 1
