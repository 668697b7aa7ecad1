"""Numbers that are added up on the device and read when they are logged."""

from __future__ import annotations

import functools

import torch


@functools.cache
def widest_float(device: torch.device) -> torch.dtype:
    """The dtype to add up in: float64, or float32 on devices that do not have it, such as Apple's."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64
