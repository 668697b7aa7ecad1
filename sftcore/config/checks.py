"""Checks of memory options that need no library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sftcore.config.settings.declared import checkpointing_arguments
from sftcore.core.errors import nearest
from sftcore.core.types import Problem

KEPT = ("attention", "matmul")
"""Values of `selective`: keep the results of attention, or of attention and every matrix multiplication."""

CHECKPOINTING_FIELDS = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
ON_CPU = "on a CPU, activations are already in host memory, so there is nothing to offload."


def memory_problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems with `activation_offloading` and `selective` in the run's settings."""
    if settings.get("activation_offloading") and settings.get("use_cpu"):
        yield Problem(ON_CPU, "activation_offloading", "Set activation_offloading: false.")
    known = (*checkpointing_arguments(), "selective")
    for key in dict.fromkeys(key for one in _options(settings) for key in one if key not in known):
        listed = f"It takes: {', '.join(known)}."
        yield Problem(f'there is no option "{key}".{nearest(str(key), known)}', CHECKPOINTING_FIELDS[1], listed)
    if (selective := selective_of(settings)) is None:
        return
    where, choices = 'gradient_checkpointing_kwargs: "selective"', ("true", *KEPT)
    if selective is not True and selective not in KEPT:
        close = nearest(str(selective), KEPT)
        yield Problem(f"{selective!r} is not known.{close}", where, fix=f"Use one of: {', '.join(choices)}.")
    if any(one.get("use_reentrant") for one in _options(settings)):
        yield Problem("reentrant checkpointing always recomputes the whole layer.", where, fix="Drop use_reentrant.")
    on = [settings.get(name) for name in ("activation_checkpointing", "gradient_checkpointing")]
    if next((value for value in on if value is not None), True) is False:
        yield Problem("gradient checkpointing is off.", where, fix="Set gradient_checkpointing: true, or drop it.")


def selective_of(settings: Mapping[str, Any]) -> Any:
    """The value of `selective` in the run's settings, or None if checkpointing is not selective."""
    return next((one["selective"] for one in _options(settings) if one.get("selective")), None)


def _options(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(settings[field]) for field in CHECKPOINTING_FIELDS if isinstance(settings.get(field), Mapping)]
