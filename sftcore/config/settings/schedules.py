"""What `lr_scheduler_kwargs` may hold: the arguments that a schedule has, and the values that it can use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sftcore.config.settings.declared import schedule_arguments
from sftcore.config.settings.values import Range
from sftcore.core.errors import nearest
from sftcore.core.types import Problem

FOLLOW_EVALUATIONS = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow evaluations."""
WHERE = "lr_scheduler_kwargs"

_POSITIVE, _NOT_NEGATIVE, _SHARE = Range(0, above=True), Range(0), Range(0, 1)
_SHAPES = ("linear", "cosine", "1-sqrt")
NUMBERS: Mapping[str, Range] = {
    "timescale": _POSITIVE, "num_cycles": _POSITIVE, "power": _NOT_NEGATIVE, "lr_end": _NOT_NEGATIVE,
    "min_lr": _NOT_NEGATIVE, "min_lr_rate": _SHARE, "warmup_lr_rate": _NOT_NEGATIVE, "min_lr_ratio": _SHARE,
    "num_decay_steps": _NOT_NEGATIVE, "num_stable_steps": _NOT_NEGATIVE, "factor": _SHARE, "patience": _NOT_NEGATIVE,
    "threshold": _NOT_NEGATIVE, "cooldown": _NOT_NEGATIVE, "eps": _NOT_NEGATIVE,
}  # fmt: skip
"""The range of each argument that is a number."""
NAMES: Mapping[str, tuple[str, ...]] = {
    "warmup_type": _SHAPES, "decay_type": _SHAPES, "mode": ("min", "max"), "threshold_mode": ("rel", "abs"),
}  # fmt: skip
WHOLE = ("num_decay_steps", "num_stable_steps", "patience", "cooldown")
OF_PLATEAU = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps")
"""What torch's ReduceLROnPlateau takes."""
_LOWEST = {"polynomial": ("lr_end", 1e-7)}
"""The argument that says where a schedule ends, and its default, of schedules that must go down."""


def schedule_problems(name: str, given: Any, learning_rate: float) -> Iterator[Problem]:
    """Problems with the arguments of the schedule of this name, for this peak learning rate."""
    known = dict.fromkeys(OF_PLATEAU, False) if name == FOLLOW_EVALUATIONS[0] else schedule_arguments(name)
    given = {key: value for key, value in given.items() if value is not None} if isinstance(given, Mapping) else {}
    if known is None:
        return
    for key in given:
        if key not in known:
            listed = f"It takes: {', '.join(known)}." if known else "Drop lr_scheduler_kwargs."
            yield Problem(f'the schedule "{name}" has no "{key}".{nearest(str(key), known)}', WHERE, listed)
    missing = [key for key, needed in known.items() if needed and key not in given]
    if {"min_lr", "min_lr_rate"} <= set(known) and not {"min_lr", "min_lr_rate"} & set(given):
        missing.append("min_lr_rate")
    if {"min_lr", "min_lr_rate"} <= set(given):
        yield Problem("min_lr and min_lr_rate exclude each other.", WHERE, "Keep one of the two.")
    if missing:
        example = ", ".join(f"{key}: {'0.1' if 'rate' in key else '100'}" for key in missing)
        yield Problem(f'the schedule "{name}" needs {", ".join(missing)}.', WHERE, f"Write {WHERE}: {{{example}}}.")
    wrong = {key: problem for key, value in given.items() if key in known and (problem := _wrong(key, value))}
    yield from wrong.values()
    yield from _ends(name, {key: value for key, value in given.items() if key not in wrong}, learning_rate)


def _wrong(key: str, value: Any) -> Problem | None:
    if key in NAMES:
        if value in NAMES[key]:
            return None
        return Problem(
            f"{key} is {value!r}.{nearest(str(value), NAMES[key])}", WHERE, f"Use one of: {', '.join(NAMES[key])}."
        )
    limits = NUMBERS.get(key)
    if limits is None or (key == "min_lr" and isinstance(value, (list, tuple))):  # one for each group of parameters
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and value in limits and (key not in WHOLE or value == int(value)):
        return None
    kind = "a whole number, " if key in WHOLE else "a number, "
    return Problem(f"{key} is {value!r}.", WHERE, f"It must be {kind}{limits}.")


def _ends(name: str, given: Mapping[str, Any], peak: float) -> Iterator[Problem]:
    """A rate at which the schedule ends that is not below the one that it comes down from."""
    key, default = _LOWEST.get(name, ("min_lr", None))
    low = given.get(key, default)
    if not isinstance(low, (int, float)) or low < peak or (key == "min_lr" and low == peak):
        return
    yield Problem(f"{key} is {low}, and learning_rate is {peak}.", WHERE, f"Set {key} to less than learning_rate.")
