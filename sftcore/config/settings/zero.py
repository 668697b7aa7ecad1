"""DeepSpeed's ZeRO by name: `zero2`, `zero3`, `zero3-offload`, with all that a run says itself left to the run."""

from __future__ import annotations

import copy
from typing import Any

_RUN: dict[str, Any] = {
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto", "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"},
}  # fmt: skip
"""What transformers fills in from the run's own settings."""
_ON_CPU = {"device": "cpu", "pin_memory": True}
_STAGES: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero2-offload": {"stage": 2, "offload_optimizer": _ON_CPU},
    "zero3": {"stage": 3},
    "zero3-offload": {"stage": 3, "offload_optimizer": _ON_CPU, "offload_param": _ON_CPU},
}
NAMES = tuple(_STAGES)
"""The names; `_` does for `-`."""


def by_name(given: Any) -> Any:
    """The configuration that a name stands for, or what was given where it is none.

    >>> by_name("zero3")["zero_optimization"], by_name("zero3.json")
    ({'stage': 3}, 'zero3.json')
    """
    name = given.strip().lower().replace("_", "-") if isinstance(given, str) else ""
    if name not in _STAGES:
        return given
    return {**copy.deepcopy(_RUN), "zero_optimization": copy.deepcopy(_STAGES[name])}
