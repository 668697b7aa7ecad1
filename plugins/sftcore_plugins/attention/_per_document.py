"""Attention that computes each document of a packed row by itself: what transformers calls, whatever the kernel.

Boundaries come by the keyword arguments that flash attention takes (`cu_seq_lens_q` and its three companions), or else
by positions that restart within a row, as in transformers' own flash attention. Rows with neither are attended as they
are, with sdpa's own mask: padded evaluation and generation work where the kernel takes masks. Packed rows of a model
that hands neither on are refused.
Shapes: B rows, H heads, T tokens, S keys, D width of a head.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define, frozen

from sftcore import ModelError
from sftcore.plugin_api import edges_of

if TYPE_CHECKING:
    import torch

PLAIN_MASKS = {"causal_mask_function", "sliding_window_overlay", "packed_sequence_mask_function"}
MASK_COMBINERS = {"and_masks", "remap_positions_for_packed_sequence"}
"""transformers.masking_utils: the functions that say causal, window and packing, and those that join them."""


@frozen
class Features:
    """What a layer asks of its attention besides the scaled product."""

    dropout: float
    scaling: float | None
    window: int | None
    softcap: float | None
    sinks_H: torch.Tensor | None
    causal: bool


class Kernel(Protocol):
    """Attention over rows as they are: (B, T, H, D) from queries, keys and values (B, H, T, D) and a mask."""

    def __call__(
        self,
        module: torch.nn.Module,
        query_BHTD: torch.Tensor,
        key_BHSD: torch.Tensor,
        value_BHSD: torch.Tensor,
        mask: torch.Tensor | None,
        features: Features,
    ) -> torch.Tensor: ...


WholeKernel = Callable[
    ["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor", int, Features], "torch.Tensor | None"
]
"""All documents in one call: queries, keys, values, cu_seq_lens, the longest, features; None where it does not fit."""


@define
class DocumentAttention:
    """The two functions that transformers registers for an attention, over a kernel for one document.

    `name` is the plugin's, for errors. `whole`, if given, is tried first. `padding` says whether masks of padded rows
    are handed to the kernel or refused. `calls` counts the calls with boundaries.
    """

    name: str
    kernel: Kernel
    whole: WholeKernel | None = None
    padding: bool = True
    calls: int = 0
    _last: tuple[torch.Tensor | None, int | None, torch.Tensor | None] = (None, None, None)
    """The positions that boundaries were last read from, their version, and the boundaries: layers get the same."""

    def register(self, implementation: str) -> None:
        """Make it known to transformers under this name."""
        from transformers import AttentionInterface, AttentionMaskInterface

        AttentionInterface.register(implementation, self.attend)
        AttentionMaskInterface.register(implementation, self.mask)

    def attend(
        self,
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
        """The attention of one layer: (B, T, H, D). Keys and values may have fewer heads than the queries.

        Raises:
            ModelError: a packed row without boundaries and positions, boundaries that do not fit, or a position bias.
        """
        import torch

        if position_bias is not None:
            raise ModelError(
                f'attention "{self.name}" does not support a position bias, which {type(module).__name__} uses.',
                fix='Choose attention "sdpa" or "eager".',
            )
        query_BHTD, key_BHSD, value_BHSD = _in_autocast(query_BHTD, key_BHSD, value_BHSD)
        causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
        features = Features(dropout, scaling, sliding_window, softcap, s_aux, causal)
        packed = attention_mask is not None and _is_packing_sign(attention_mask, query_BHTD)
        if cu_seq_lens_q is None and (packed or attention_mask is None):
            cu_seq_lens_q = self._boundaries_of(position_ids, query_BHTD, key_BHSD)
            if packed and cu_seq_lens_q is None:
                raise ModelError(
                    f'attention "{self.name}" was given a packed row without boundaries in {type(module).__name__}.',
                    fix="The model hands neither cu_seq_lens_q nor position_ids on to its attention: it needs "
                    'attention "sdpa".',
                )
        if cu_seq_lens_q is None:
            return self.kernel(module, query_BHTD, key_BHSD, value_BHSD, attention_mask, features), None
        if not torch.compiler.is_compiling():  # a counter would make the compiler start anew with every step
            self.calls += 1
        mask = None if packed else attention_mask
        if mask is None and self.whole is not None:
            longest = max_length_q if max_length_q is not None else int(cu_seq_lens_q.diff().max())
            output = self.whole(query_BHTD, key_BHSD, value_BHSD, cu_seq_lens_q, longest, features)
            if output is not None:
                return output, None
        return self._one_by_one(module, query_BHTD, key_BHSD, value_BHSD, mask, cu_seq_lens_q, features), None

    def _boundaries_of(
        self, position_ids: torch.Tensor | None, query_BHTD: torch.Tensor, key_BHSD: torch.Tensor
    ) -> torch.Tensor | None:
        """Boundaries (D + 1,) int32 by positions that restart within a row; None where none do, or with a cache."""
        import torch

        shape = query_BHTD.shape[0], query_BHTD.shape[2]
        if position_ids is None or position_ids.shape[-1] != key_BHSD.shape[2] or position_ids.shape[-1] != shape[1]:
            return None
        if position_ids.ndim != 2:
            return None
        version = None if position_ids.is_inference() else position_ids._version
        known, version_known, found = self._last
        if known is position_ids and version is not None and version_known == version:
            return found
        starts_BT = torch.nn.functional.pad(position_ids.diff(dim=-1) != 1, (1, 0), value=True).expand(shape)
        found = None
        if bool(starts_BT[:, 1:].any()):
            starts = starts_BT.flatten().nonzero().flatten()
            found = torch.nn.functional.pad(starts, (0, 1), value=starts_BT.numel()).to(torch.int32)
        self._last = position_ids, version, found
        return found

    def _one_by_one(
        self,
        module: torch.nn.Module,
        query_BHTD: torch.Tensor,
        key_BHSD: torch.Tensor,
        value_BHSD: torch.Tensor,
        mask: torch.Tensor | None,
        cu_seq_lens: torch.Tensor,
        features: Features,
    ) -> torch.Tensor:
        import torch

        spans = documents_of(edges_of(cu_seq_lens), query_BHTD)
        whole = None if mask is None else mask.expand(len(query_BHTD), -1, -1, -1)
        parts = [
            self.kernel(
                module, query, key, value, None if whole is None else whole[row : row + 1, :, span, span], features
            )
            for (row, span), query, key, value in zip(
                spans, *(_cut(one, spans) for one in (query_BHTD, key_BHSD, value_BHSD)), strict=True
            )
        ]
        return torch.cat(parts, dim=1).reshape(*query_BHTD.shape[:1], -1, *parts[0].shape[2:])

    def mask(
        self,
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

        A packed row gets a sign instead of a mask, (1, 1, 1, 1) bool: `attend` then insists on boundaries.

        Raises:
            ModelError: rows are padded and the kernel takes none; or the model would put its own attention, not causal
                by itself, in the place of `attend`.
        """
        import torch
        from transformers.masking_utils import sdpa_mask

        if config is not None:
            _refuse_others(self.name, type(config).__module__, type(config).__name__)
        if not self.padding and attention_mask is not None and not bool(attention_mask.all()):
            raise ModelError(
                f'attention "{self.name}" does not accept padding, but rows of this batch are padded.',
                fix="Set padding_free: true or packing: true; to generate, give one prompt at a time.",
            )
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


def _in_autocast(*states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """float32 states in the dtype of autocast, where it is on, as torch would cast them for its own attention.

    A model with float32 weights computes queries and keys in it and turns them back to float32, multiplying them by the
    cosines and sines of RoPE; kernels in half precision would not be used.
    """
    import torch

    device = states[0].device.type
    if not torch.is_autocast_enabled(device):
        return states
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        one.to(dtype) if one.dtype in (torch.float32, torch.float16, torch.bfloat16) else one for one in states
    )


# --- One document, or rows as they are, by torch's scaled dot product attention -------------------------------------
def attend_by_sdpa(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    mask: torch.Tensor | None,
    features: Features,
) -> torch.Tensor:
    """(B, T, H, D); softcap and sinks of `features` are left out, which torch's kernels do not know."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    num_queries, num_keys = query_BHTD.shape[2], key_BHSD.shape[2]
    window = features.window
    if mask is None and features.causal and num_queries == num_keys and window is not None and window < num_keys:
        mask = causal_mask(num_queries, window, query_BHTD.device)
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


def causal_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """(T, T) bool; a token sees `window` tokens, itself included."""
    import torch

    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


def documents_of(edges: Sequence[int], query_BHTD: torch.Tensor) -> list[tuple[int, slice]]:
    """Row and span of each document, in order; boundaries count through the rows one after the other."""
    found = []
    num_rows, num_tokens = query_BHTD.shape[0], query_BHTD.shape[2]
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
        found.append((row, slice(first, first + end - start)))
    return found


def _cut(states_BHTD: torch.Tensor, spans: Sequence[tuple[int, slice]]) -> list[torch.Tensor]:
    """The states of each document, (1, H, T, D).

    Rows are split at once, since the gradient of a slice is a tensor as large as the row, for each of its documents.
    """
    lengths: list[list[int]] = [[] for _ in states_BHTD]
    for row, span in spans:
        lengths[row].append(span.stop - span.start)
    rows = states_BHTD.split(1)
    return [part for row, sizes in zip(rows, lengths, strict=True) for part in row.split(sizes, dim=2)]


# --- Signs of packing -----------------------------------------------------------------------------------------------
def _is_packing_sign(mask: torch.Tensor, query_BHTD: torch.Tensor) -> bool:
    return tuple(mask.shape) == (1, 1, 1, 1) and query_BHTD.shape[2] > 1


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
def _refuse_others(name: str, module_name: str, config_name: str) -> None:
    module = sys.modules.get(module_name.replace(".configuration_", ".modeling_"))
    source = inspect.getsource(module) if module is not None else ""
    # The same signs by which transformers tells whether a model's attention can be set (5.17 to 5.24)
    if re.search(r"^class \w*Attention\w*\(nn\.Module\):", source, re.MULTILINE) and not re.search(
        r"\bALL_ATTENTION_FUNCTIONS\b", source
    ):
        raise ModelError(
            f'models of {config_name} compute their own attention and never ask for "{name}".',
            fix='Choose attention "sdpa" or "eager".',
        )
