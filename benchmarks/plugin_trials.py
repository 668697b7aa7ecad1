"""What the trials of a run's plugins cost: passes and tokens, counted, and seconds, of SmolLM2 or any other model.

    python benchmarks/plugin_trials.py MODEL [--lora] [--attention varlen] [--bf16]

Two steps on four rows of 64 tokens are what the trials are held against. The second run finds the trials in the cache.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from typing import Any


def main() -> None:
    """Train two steps twice, with a cache of their own, and print what the trials took of each."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("model")
    arguments.add_argument("--lora", action="store_true")
    arguments.add_argument("--attention", default="varlen")
    arguments.add_argument("--bf16", action="store_true")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SFTCORE_CACHE"] = f"{folder}/cache"
        for name in ("first", "second"):
            measure(given, f"{folder}/{name}", name)


def measure(given: argparse.Namespace, folder: str, name: str) -> None:
    """Train two steps and print what the trials took."""
    from datasets import Dataset

    from sftcore import SFTConfig, SFTTrainer
    from sftcore.train import construction as module
    from sftcore.trials.model import ModelTrial

    counted: dict[str, Any] = {"passes": 0, "tokens": 0, "seconds": 0.0}
    once, tried = ModelTrial.once, module.try_plugins

    def count_once(self: Any, **options: Any) -> Any:
        before = self.passes, self.tokens
        found = once(self, **options)
        counted["passes"] += self.passes - before[0]
        counted["tokens"] += self.tokens - before[1]
        return found

    def timed(trainer: Any) -> None:
        start = time.monotonic()
        tried(trainer)
        counted["seconds"] = time.monotonic() - start

    ModelTrial.once, module.try_plugins = count_once, timed  # type: ignore[method-assign]
    try:
        rows = Dataset.from_list([{"input_ids": list(range(10, 74)), "labels": list(range(10, 74))}] * 8)
        plugins: dict[str, Any] = {"attention": given.attention, "noise": "neftune"}
        plugins |= {"adapter": "lora"} if given.lora else {}
        args = SFTConfig(
            folder, max_steps=2, per_device_train_batch_size=4, report_to="none", save_strategy="no", bf16=given.bf16,
            plugins=plugins,
        )  # fmt: skip
        trainer = SFTTrainer(given.model, args, train_dataset=rows)
        start = time.monotonic()
        trainer.train()
        whole = time.monotonic() - start
    finally:
        ModelTrial.once, module.try_plugins = once, tried  # type: ignore[method-assign]
    steps = whole - counted["seconds"]
    print(
        f"{name} run: trials {counted['passes']} passes of {counted['tokens']} tokens in {counted['seconds']:.2f} s; "
        f"the rest of two steps ({2 * 3 * 4 * 64} tokens): {steps:.2f} s"
    )


if __name__ == "__main__":
    main()
