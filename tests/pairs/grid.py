"""All combinations of loader, attention, adapter, batches, loss and noise, as recipes; a few that hold every pair."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

AXES: dict[str, tuple[str, ...]] = {
    "loader": ("hf", "unsloth"),
    "attention": ("sdpa", "flash-1", "flash-2", "varlen", "flex"),
    "adapter": ("lora", "qlora", "none"),
    "batches": ("packed", "padding-free", "padded"),
    "loss": ("nll", "dft", "liger"),
    "noise": ("neftune", "none"),
}
Combination = tuple[str, ...]
"""A value of each axis, in their order."""
NEEDS = {"qlora": "bitsandbytes", "liger": "liger_kernel", "unsloth": "unsloth"}
"""What has to be installed for training with a value."""
BATCHES: dict[str, dict[str, Any]] = {
    "packed": {"packing": True}, "padding-free": {"padding_free": True}, "padded": {"padding_free": False}
}  # fmt: skip


def combinations() -> list[Combination]:
    return list(itertools.product(*AXES.values()))


def recipe(combination: Combination, *, model: str, data: str, output: str) -> dict[str, Any]:
    """A run of two steps on a CPU. `hf` is the default loader, and Unsloth has an attention of its own."""
    loader, attention, adapter, batches, loss, noise = combination
    asked = {
        "loader": None if loader == "hf" else loader,
        "attention": None if (loader, attention) == ("unsloth", "sdpa") else attention,
        "adapter": None if adapter == "none" else {adapter: {"r": 4}},
        "loss": loss,
        "neftune_noise_alpha": 5.0 if noise == "neftune" else None,
        # flash-attn knows half precision alone
        "bf16": True if attention == "flash-2" else None,
    }
    return {
        "model": model, "data": data, "output_dir": output, "max_length": 64, "max_steps": 2, "logging_steps": 1,
        "per_device_train_batch_size": 2, "learning_rate": 1e-2, "use_cpu": True, "report_to": "none",
        "save_strategy": "no", "dataset_cache": False,
        **BATCHES[batches], **{key: value for key, value in asked.items() if value is not None},
    }  # fmt: skip


def pairs(combination: Combination) -> Iterator[tuple[tuple[int, str], ...]]:
    """Every pair of values of two axes, each with the number of its axis."""
    return itertools.combinations(enumerate(combination), 2)


def covering(known: Iterable[Combination]) -> list[Combination]:
    """A few of these combinations in which every pair stands that stands in any of them."""
    left = {combination: set(pairs(combination)) for combination in known}
    missing = set().union(*left.values())
    chosen = []
    while missing:
        best = max(left, key=lambda one: len(left[one] & missing))
        chosen.append(best)
        missing -= left.pop(best)
    return chosen
