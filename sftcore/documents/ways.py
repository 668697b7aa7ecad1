"""The ways to keep the documents of a packed row apart.

A packed batch holds input_ids, labels and position_ids, but no attention mask. The positions restart at 0 with each
document. Padding at the end of a row is a document of its own, without labels:

    input_ids     a a a b b c c c c - -
    position_ids  0 1 2 0 1 0 1 2 3 0 1
    cu_seq_lens   0     3   5       9   11

Whether a way works for a model and its attention is measured by `sftcore.documents.proof`.
Shapes: B rows, T tokens, N documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from sftcore.core.types import AttentionBackend
from sftcore.data.host_facts import HostFacts, facts_of
from sftcore.documents.rope import position_planes
from sftcore.model.unwrap import causal_model

if TYPE_CHECKING:
    import torch

Batch = Mapping[str, Any]


@frozen
class Way:
    """One way to keep documents apart: it turns a packed batch into the arguments of the model's forward pass."""

    name: str
    summary: str
    apply: Callable[[Batch], dict[str, Any]] = field(repr=False)

    def __call__(self, batch: Batch) -> dict[str, Any]:
        return self.apply(batch)


POSITIONS = Way("positions", "position ids that restart with each document", dict)
"""transformers builds the mask of a packed row from restarting positions, if the model passes them on."""

BOUNDARIES = Way(
    "boundaries",
    "document boundaries given to the attention",
    lambda batch: {**batch, **boundaries(batch["position_ids"], facts_of(batch))},
)
"""The attention computes one document at a time, so its cost grows with the sum of the squared document lengths."""


def ways_for(model: Any, backend: AttentionBackend | None) -> tuple[Way, ...]:
    """The ways to try on this model, the best one first.

    Boundaries come first for an attention that supports them, since it cannot tell documents apart without them. Other
    attentions may read them as well, as linear attention with its own kernels does, so they are tried after positions.
    """
    first, second = (BOUNDARIES, POSITIONS) if backend is not None and backend.boundaries else (POSITIONS, BOUNDARIES)
    ways = (first, second, *mask_ways(model))
    planes = position_planes(causal_model(model))
    return ways if planes is None else tuple(_with_planes(way, planes) for way in ways)


def _with_planes(way: Way, planes: Callable[[Batch, torch.Tensor], dict[str, Any]]) -> Way:
    """The way, with positions in time, height and width added to the text positions."""
    return evolve(way, apply=lambda batch: planes(way.apply(batch), batch["position_ids"]))


# --- Boundaries -----------------------------------------------------------------------------------------------------
def document_starts(position_ids_BT: torch.Tensor) -> torch.Tensor:
    """Where documents begin: (B, T) bool, True at the start of every row."""
    starts_BT = position_ids_BT == 0
    starts_BT[:, 0] = True
    return starts_BT


def boundaries(position_ids_BT: torch.Tensor, facts: HostFacts | None = None) -> dict[str, Any]:
    """The keyword arguments that tell flash attention about documents: cu_seq_lens (N + 1,) int32, max_length an int.

    Boundaries are counted through all rows in order, as flash attention expects. No document extends over two rows,
    since every row begins with position 0. The host waits for them, unless the batch came with its facts.
    """
    import torch

    if facts is not None and facts.edges is not None and facts.boundaries is not None:
        cu_seq_lens = facts.boundaries
        longest = max(end - start for start, end in itertools.pairwise(facts.edges))
    else:
        starts = document_starts(position_ids_BT).flatten().nonzero().flatten()
        cu_seq_lens = torch.nn.functional.pad(starts, (0, 1), value=position_ids_BT.numel()).to(torch.int32)
        longest = int(cu_seq_lens.diff().max())
    return {
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
    }


# --- Masks ----------------------------------------------------------------------------------------------------------
def block_mask(
    position_ids_BT: torch.Tensor,
    *,
    window: int | None = None,
    chunk: int | None = None,
    images_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """A mask of (B, 1, T, T) bool that is causal within each document and blocks attention across documents.

    With `window`, a token sees that many tokens, including itself; with `chunk`, the tokens of its own chunk of the
    document. The tokens of one image, which are consecutive in `images_BT` (bool), see each other in both directions,
    as in Gemma 3.
    """
    import torch

    documents_BT = document_starts(position_ids_BT).cumsum(-1)
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    mask_BTT = same_BTT.tril()
    if images_BT is not None:
        begins_BT = images_BT & ~torch.nn.functional.pad(images_BT, (1, 0))[:, :-1]
        number_BT = begins_BT.cumsum(-1)
        both_BTT = images_BT[:, :, None] & images_BT[:, None, :]
        mask_BTT |= same_BTT & both_BTT & (number_BT[:, :, None] == number_BT[:, None, :])
    if window is not None:
        index_T = torch.arange(position_ids_BT.shape[1], device=position_ids_BT.device)
        mask_BTT &= index_T[:, None] - index_T[None, :] < window
    if chunk is not None:
        chunks_BT = position_ids_BT // chunk
        mask_BTT &= chunks_BT[:, :, None] == chunks_BT[:, None, :]
    return mask_BTT[:, None]


def mask_ways(model: Any) -> tuple[Way, ...]:
    """Explicit masks in the forms that this model may accept: one for each type of layer, or one for all layers."""
    config = causal_model(model).config.get_text_config()
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    kinds = {
        "full_attention": {},
        "sliding_attention": {"window": window},
        "chunked_attention": {"chunk": chunk},
    }
    # only torch's own attention takes a bool mask; others would add it to the scores, shift them by 1 and leak
    dtype = None if config._attn_implementation == "sdpa" else causal_model(model).dtype

    def mask_of(batch: Batch, limits: Mapping[str, int | None]) -> torch.Tensor:
        types = batch.get("token_type_ids")
        mask = block_mask(batch["position_ids"], images_BT=None if types is None else types == 1, **limits)
        return mask if dtype is None else additive(mask, dtype)

    types = sorted(set(getattr(config, "layer_types", None) or ()) & set(kinds))
    single = kinds[types[0]] if len(types) == 1 else {} if types else {"window": window, "chunk": chunk}
    ways = [
        Way(
            "mask",
            "an explicit mask for each type of layer",
            lambda batch: {**batch, "attention_mask": {key: mask_of(batch, kinds[key]) for key in types}},
        ),
        Way("mask", "an explicit mask", lambda batch: {**batch, "attention_mask": mask_of(batch, single)}),
    ]
    # a single mask cannot serve layers of different types
    return tuple(ways[1:] if not types else ways[:1] if len(types) > 1 else ways)


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The bool mask as numbers to add to the scores: 0 where a token may attend, the lowest number elsewhere."""
    import torch

    zero = torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask, zero, torch.finfo(dtype).min)
