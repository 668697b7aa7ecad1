"""Position ids of models that place image tokens in time, height and width, for rows that hold several documents.

Qwen's vision-language models rotate by three positions a token (M-RoPE, arXiv:2409.12191). They compute them by
themselves for a row that is one document; where documents share a row, each is computed alone here, and a fourth plane
holds the plain positions by which transformers tells documents apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IMAGE_TYPE = 1
"""The type of an image's tokens in mm_token_type_ids."""


def position_planes(model: Any) -> Callable[[Mapping[str, Any], torch.Tensor], dict[str, Any]] | None:
    """How such a model takes the positions of shared rows; None for a model with one position a token."""
    base = getattr(model, "base_model", None)
    index = getattr(base, "get_rope_index", None)
    if index is None:
        return None

    def with_planes(batch: Mapping[str, Any], position_ids_BT: torch.Tensor) -> dict[str, Any]:
        return {**batch, "position_ids": planes_of(index, merge_of(model.config), batch, position_ids_BT)}

    return with_planes


def merge_of(config: Any) -> int:
    """How many patches of an image become one token."""
    return int(getattr(config.vision_config, "spatial_merge_size", 1)) ** 2


def planes_of(
    index: Callable[..., tuple[torch.Tensor, Any]], merge: int, batch: Mapping[str, Any], position_ids_BT: torch.Tensor
) -> torch.Tensor:
    """Plain positions, then those in time, height and width: (4, B, T) int64.

    Args:
        index: the model's `get_rope_index`.
        merge: patches that become one token.
        batch: input_ids (B, T), and where it has images mm_token_type_ids (B, T) and image_grid_thw (images, 3).
        position_ids_BT: positions that restart with each document.
    """
    import torch

    planes = position_ids_BT[None].repeat(4, 1, 1)
    types, grids = batch.get("mm_token_type_ids"), batch.get("image_grid_thw")
    if types is None or grids is None:
        return planes
    sizes = (grids.prod(-1) // merge).tolist()
    used = 0
    for row in range(len(position_ids_BT)):
        starts = (position_ids_BT[row] == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], position_ids_BT.shape[1]], strict=True):
            tokens, first = int((types[row, start:end] == IMAGE_TYPE).sum()), used
            while tokens > 0:
                tokens -= sizes[used]
                used += 1
            if used > first:
                found, _ = index(
                    batch["input_ids"][row : row + 1, start:end],
                    mm_token_type_ids=types[row : row + 1, start:end],
                    image_grid_thw=grids[first:used],
                    attention_mask=torch.ones_like(types[row : row + 1, start:end]),
                )
                planes[1:, row, start:end] = found[:, 0]
    return planes
