"""How Triton runs its kernels, which it decides when it is imported."""

from __future__ import annotations

import os
import sys


def triton_is_interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on any device, as TRITON_INTERPRET=1 asks before Triton is imported.

    Once Triton is imported, its own functions tell: those that it has compiled stay so, whatever is set afterwards.
    """
    triton = sys.modules.get("triton")
    if triton is None or not hasattr(triton, "knobs"):
        return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
    return bool(triton.knobs.runtime.interpret) and not isinstance(triton.language.sum, triton.runtime.JITFunction)
