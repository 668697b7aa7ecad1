"""Models whose weights DeepSpeed's ZeRO-3 keeps in parts on all processes, from the moment they are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def num_weights(parameter: torch.nn.Parameter) -> int:
    """How many numbers it has; what ZeRO-3 has taken apart has none here."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
