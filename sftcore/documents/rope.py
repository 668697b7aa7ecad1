"""Position ids in time, height and width for rows that hold several documents.

Qwen's vision-language models use three positions per token (M-RoPE, arXiv:2409.12191). They compute them themselves for
a row with a single document. If documents share a row, the positions of each document are computed separately here, and
a fourth plane holds the text positions by which transformers tells documents apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IMAGE_TYPE = 1
"""The value in mm_token_type_ids that marks an image token."""


def position_planes(model: Any) -> Callable[[Mapping[str, Any], torch.Tensor], dict[str, Any]] | None:
    """A function that adds the position planes to a batch; None for a model with one position per token.

    It takes a batch with input_ids (B, T), and with images also mm_token_type_ids (B, T) and image_grid_thw
    (images, 3), and positions (B, T) that restart with each document. The planes are the text positions, followed by
    those in time, height and width: (4, B, T) int64.
    """
    index = getattr(getattr(model, "base_model", None), "get_rope_index", None)
    if index is None:
        return None
    # how many patches of an image are merged into one token
    merged = int(getattr(model.config.vision_config, "spatial_merge_size", 1)) ** 2

    def with_planes(batch: Mapping[str, Any], position_ids_BT: torch.Tensor) -> dict[str, Any]:
        import torch

        planes = position_ids_BT[None].repeat(4, 1, 1)
        types, grids = batch.get("mm_token_type_ids"), batch.get("image_grid_thw")
        if types is None or grids is None:
            return {**batch, "position_ids": planes}
        sizes = (grids.prod(-1) // merged).tolist()
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
        return {**batch, "position_ids": planes}

    return with_planes
