"""How long the fuzzing lasts: a second or two a test, or `SFTCORE_FUZZ=N` for N times as many examples.

SFTCORE_FUZZ=100 python -m pytest tests/fuzz -q

The longer ones are others each time, where `CI` is not set.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("SFTCORE_FUZZ", "1"))


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """Settings for a test that runs on so many examples; nothing of an earlier run is taken up, so that CI is alike."""
    return settings(
        max_examples=examples * TIMES,
        deadline=10_000,  # ms: no input may hang
        database=None,
        derandomize=TIMES == 1 or "CI" in os.environ,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )
