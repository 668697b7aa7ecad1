"""Position ids in time, height and width for rows that hold several documents.

Qwen's vision-language models use three positions per token (M-RoPE, arXiv:2409.12191). They compute them themselves for
a row with a single document. If documents share a row, the positions of each document are computed separately here, and
a fourth plane holds the text positions by which transformers tells documents apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

GRIDS = {1: "image_grid_thw", 2: "video_grid_thw"}
"""Where a batch has the sizes of what the values in mm_token_type_ids mark: images and videos."""
SECONDS = "second_per_grid_ts"
"""How many seconds each step of a video's grid takes, for models whose positions follow the time."""


def position_planes(model: Any) -> Callable[[Mapping[str, Any], torch.Tensor], dict[str, Any]] | None:
    """A function that adds the position planes to a batch; None for a model with one position per token.

    It takes a batch with input_ids (B, T), with images also mm_token_type_ids (B, T) and image_grid_thw (images, 3),
    with videos video_grid_thw (videos, 3) and what else tells their time, and positions (B, T) that restart with each
    document. The planes are the text positions, followed by those in time, height and width: (4, B, T) int64.
    """
    index = getattr(getattr(model, "base_model", None), "get_rope_index", None)
    if index is None:
        return None
    reads_seconds = SECONDS in inspect.signature(index).parameters
    # how many patches of an image are merged into one token
    merged = int(getattr(model.config.vision_config, "spatial_merge_size", 1)) ** 2

    def with_planes(batch: Mapping[str, Any], position_ids_BT: torch.Tensor) -> dict[str, Any]:
        import torch

        planes = position_ids_BT[None].repeat(4, 1, 1)
        types = batch.get("mm_token_type_ids")
        grids = {kind: batch[name] for kind, name in GRIDS.items() if batch.get(name) is not None}
        if types is None or not grids:
            return {**batch, "position_ids": planes}
        sizes = {kind: (grid.prod(-1) // merged).tolist() for kind, grid in grids.items()}
        used = dict.fromkeys(grids, 0)
        for row in range(len(position_ids_BT)):
            starts = (position_ids_BT[row] == 0).nonzero().flatten().tolist()
            for start, end in zip(starts, [*starts[1:], position_ids_BT.shape[1]], strict=True):
                types_T, own = types[row, start:end], {}
                for kind, grid in grids.items():
                    tokens, first = int((types_T == kind).sum()), used[kind]
                    while tokens > 0:
                        tokens -= sizes[kind][used[kind]]
                        used[kind] += 1
                    if used[kind] > first:
                        own[GRIDS[kind]] = grid[first : used[kind]]
                        if kind == 2 and reads_seconds and batch.get(SECONDS) is not None:
                            own[SECONDS] = batch[SECONDS][first : used[kind]]
                if own:
                    found, _ = index(
                        batch["input_ids"][row : row + 1, start:end],
                        mm_token_type_ids=types_T[None],
                        attention_mask=torch.ones_like(types_T[None]),
                        **own,
                    )
                    planes[1:, row, start:end] = found[:, 0]
        return {**batch, "position_ids": planes}

    return with_planes
