"""Checks of settings for which no library is needed: what memory options and adapters' dtypes may say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sftcore.core.errors import nearest
from sftcore.core.types import Problem

ADAPTER_DTYPES = ("float32", "bfloat16")
"""What an adapter can be trained in; float16 has too few exponents for a weight that is stepped on."""

KEPT = ("attention", "matmul")
"""What `selective` may name: the results of attention, or those of attention and of every matrix multiplication."""

CHECKPOINTING_FIELDS = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
ON_CPU = "on a CPU activations are in host memory already, and there is nowhere to move them."


def memory_problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with `activation_offloading` and with `selective` in the run's settings."""
    if settings.get("activation_offloading") and settings.get("use_cpu"):
        yield Problem(ON_CPU, "activation_offloading", "Set activation_offloading: false.")
    if (selective := selective_of(settings)) is None:
        return
    where, known = 'gradient_checkpointing_kwargs: "selective"', ("true", *KEPT)
    if selective is not True and selective not in KEPT:
        close = nearest(str(selective), KEPT)
        yield Problem(f"{selective!r} is not known.{close}", where, fix=f"Use one of: {', '.join(known)}.")
    if any(one.get("use_reentrant") for one in _options(settings)):
        yield Problem("reentrant checkpointing recomputes all of a layer.", where, fix="Drop use_reentrant.")
    on = [settings.get(name) for name in ("activation_checkpointing", "gradient_checkpointing")]
    if next((value for value in on if value is not None), True) is False:
        yield Problem("gradient checkpointing is off.", where, fix="Set gradient_checkpointing: true, or drop it.")


def selective_of(settings: Mapping[str, Any]) -> Any:
    """What the run's settings give for `selective`; None where checkpointing is not selective."""
    return next((one["selective"] for one in _options(settings) if one.get("selective")), None)


def _options(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(settings[field]) for field in CHECKPOINTING_FIELDS if isinstance(settings.get(field), Mapping)]
