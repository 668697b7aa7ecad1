"""Short runs of SFTTrainer, to be called in a process with the stand-in and in one without."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import Any

STEPS = 3


def rows(count: int = 16) -> list[dict[str, str]]:
    """Documents of different lengths."""
    return [{"prompt": f"say {i}:", "completion": " hello world" * (1 + i % 4)} for i in range(count)]


def on_device() -> bool:
    """Whether this process has the stand-in."""
    return "ACCELERATE_TORCH_DEVICE" in os.environ


def settings(output: str, **fields: Any) -> dict[str, Any]:
    """What all runs share: two micro-batches in a step, every loss logged."""
    return {
        "output_dir": output, "max_steps": STEPS, "logging_steps": 1, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "max_length": 32, "save_strategy": "no",
        "report_to": "none", "gradient_checkpointing": False, "bf16": False, "dataset_cache": False,
        "disable_tqdm": True, "use_cpu": not on_device(), **fields,
    }  # fmt: skip


def outcome(trainer: Any) -> dict[str, Any]:
    """Train, and what it came to: losses, notes of the plan, the device, whether the head gathered, the waits."""
    from tests.standin.standin import counting

    with counting() as waits:
        trainer.train()
    proof = trainer.shared_rows.proof
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "logged": trainer.state.log_history,
        "notes": list(trainer.loaded.notes),
        "gathers": trainer.bound_loss.gathers,
        "way": proof and proof.way.name,
        "device": str(next(trainer.model.parameters()).device),
        "waits": {"total": waits.total, "kinds": dict(waits.kinds), "where": dict(waits.where.most_common())},
    }


def train(*, model: dict[str, Any] | None = None, dtype: str = "float32", **fields: Any) -> dict[str, Any]:
    """Three steps of a tiny Llama.

    Args:
        model: overrides of its configuration.
        dtype: of its weights.
        fields: of SFTConfig.
    """
    import torch
    from datasets import Dataset

    from sftcore import SFTConfig, SFTTrainer
    from tests.conftest import make_llama, make_tokenizer

    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(None):
        trainer = SFTTrainer(
            make_llama(tokenizer, **(model or {})).to(getattr(torch, dtype)),
            SFTConfig(**settings(output, **fields)),
            train_dataset=Dataset.from_list(rows()),
            processing_class=tokenizer,
        )
        return outcome(trainer)
