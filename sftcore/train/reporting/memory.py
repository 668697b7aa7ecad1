"""How much memory a run has held."""

from __future__ import annotations

import sys
from typing import Any


def most_memory(device: Any) -> int:
    """The most bytes held so far: by the allocator of the device, or by the process on a CPU. Nothing waits for it."""
    import torch

    module = torch.get_device_module(device) if device.type != "cpu" else None
    if (ask := getattr(module, "max_memory_allocated", None)) is not None:
        return int(ask(device))
    if (ask := getattr(module, "current_allocated_memory", None)) is not None:  # MPS keeps no maximum
        return int(ask())
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
