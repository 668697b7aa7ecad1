"""Models whose weights DeepSpeed's ZeRO-3 partitions across all processes as soon as they are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def num_weights(parameter: torch.nn.Parameter) -> int:
    """The number of elements, even if ZeRO-3 has partitioned the parameter and left none here."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
