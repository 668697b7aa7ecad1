"""Evaluations and saves that are counted by epoch: what they make of strategies and steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sftcore.core.types import Problem

OF_RHYTHM = (
    "evals_per_epoch", "eval_strategy", "eval_steps", "saves_per_epoch", "save_strategy", "save_steps",
    "num_train_epochs",
)  # fmt: skip
"""The fields that are read and made here."""
_KINDS = (("evals_per_epoch", "eval", None), ("saves_per_epoch", "save", 500))
"""The key, what it counts, and the default of its steps."""


def per_epoch(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Strategies and steps for what is counted by epoch: steps as a share of the run, which its callback makes exact.

    >>> per_epoch({"evals_per_epoch": 2, "num_train_epochs": 5})
    {'eval_strategy': 'steps', 'eval_steps': 0.1}
    """
    epochs = settings.get("num_train_epochs")
    found: dict[str, Any] = {}
    for key, kind, _ in _KINDS:
        if count := settings.get(key):
            # a share of 1 would be a single step
            share = min(1 / (count * (3.0 if epochs is None else epochs)), 0.999)
            found |= {f"{kind}_strategy": "steps", f"{kind}_steps": share}
    return found


def rhythm_problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """What stands beside a count by epoch and says something else."""
    derived = per_epoch(settings)
    for key, kind, default in _KINDS:
        if not settings.get(key):
            continue
        steps, strategy = f"{kind}_steps", settings.get(f"{kind}_strategy")
        strategy = getattr(strategy, "value", strategy)
        if settings.get(steps) not in (None, default, derived[steps]):
            yield Problem(f"{key} and {steps} contradict each other.", fix="Keep one of the two.")
        if strategy not in (None, "steps") and not (kind == "eval" and strategy == "no"):
            yield Problem(f'{key} and {kind}_strategy "{strategy}" contradict each other.', fix="Keep one of the two.")
