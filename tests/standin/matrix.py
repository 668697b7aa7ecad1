"""The combinations in which SFTTrainer is tried on the stand-in: a few that hold every pair of values."""

from __future__ import annotations

import functools
import itertools
from typing import Any

from tests.pairs.grid import covering

AXES: dict[str, tuple[str, ...]] = {
    "batches": ("padded", "padding-free", "packed"),
    "attention": ("sdpa", "eager", "varlen", "flash-1", "flash-2"),
    "dtype": ("float32", "autocast", "bfloat16", "master"),
    "trains": ("full", "lora"),
    "noise": ("none", "neftune"),
    "loss": ("nll", "dft"),
    "memory": ("all", "checkpointing", "offloading"),
    "also": ("nothing", "evaluation", "metrics", "generation"),
}
HALF_ONLY = ("flash-1", "flash-2")
Combination = tuple[str, ...]


@functools.cache
def chosen() -> list[Combination]:
    """As few of those that are allowed as hold every pair."""
    return covering(one for one in itertools.product(*AXES.values()) if allowed(one))


def allowed(combination: Combination) -> bool:
    """Whether no part of it is refused, as the pages on attention say."""
    batches, attention, dtype, *_ = combination
    return not (attention == "flash-1" and batches == "padded") and not (attention in HALF_ONLY and dtype == "float32")


def call(combination: Combination, *, on_cpu: bool = False) -> dict[str, Any]:
    """The arguments of `tests.standin.training.train`.

    On a CPU, which has no kernel of flash-attn and nothing to offload, another attention of the same layout is compared
    with, and all is kept.
    """
    batches, attention, dtype, trains, noise, loss, memory, also = combination
    if on_cpu and attention in HALF_ONLY:
        attention = "sdpa" if batches == "padded" else "varlen"
    return {
        "dtype": "float32" if dtype == "autocast" else dtype.replace("master", "bfloat16"),
        "lora": trains == "lora",
        "also": also,
        "plugins": {"attention": attention, "loss": loss},
        "bf16": dtype == "autocast",
        "adapter_dtype": "bfloat16" if dtype in ("bfloat16", "master") else "float32",
        "master_weights": dtype == "master",
        "neftune_noise_alpha": 5.0 if noise == "neftune" else None,
        "gradient_checkpointing": memory == "checkpointing",
        "activation_offloading": memory == "offloading" and not on_cpu,
        **{"padded": {"padding_free": False}, "padding-free": {"padding_free": True}, "packed": {"packing": True}}[
            batches
        ],
    }


def tolerance(combination: Combination) -> float:
    """How far a loss may be from the CPU's, which adds up in another order and rounds in other places."""
    return 1e-4 if "float32" in combination else 2e-2
