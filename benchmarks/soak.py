"""Check that memory does not grow while a tiny model trains for 2,000 steps with evaluations and saves.

    python benchmarks/soak.py [--steps 2000] [--json FILE]

It prints the slope of the resident memory in MiB per 1,000 steps, by least squares over all steps after the warm-up
(the first tenth), and exits with 1 if the slope is above `--limit`. The run evaluates and saves every 50 steps, and
keeps two checkpoints.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np


def resident_mib() -> float:
    """The resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_callback(points: list[tuple[int, float]]) -> Any:
    """A callback that records step and resident memory every ten steps, after collecting garbage."""
    from transformers import TrainerCallback

    class Memory(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % 10 == 0:
                gc.collect()
                points.append((state.global_step, resident_mib()))

    return Memory()


def soak(steps: int, folder: Path) -> tuple[list[tuple[int, float]], float]:
    """Train, and return (step, MiB) for every ten steps and the seconds taken."""
    from datasets import Dataset

    import sftcore
    from tests.conftest import make_llama, make_tokenizer

    tokenizer = make_tokenizer()
    words = ["the", "answer", "is", "a", "word", "say", "hello", "world", "question"]
    rng = np.random.default_rng(0)
    rows = [
        {
            "messages": [
                {"role": "user", "content": " ".join(rng.choice(words, rng.integers(2, 20)))},
                {"role": "assistant", "content": " ".join(rng.choice(words, rng.integers(2, 20)))},
            ]
        }
        for _ in range(600)
    ]
    args = sftcore.SFTConfig(
        str(folder / "out"), max_steps=steps, use_cpu=True, report_to="none", disable_tqdm=True, logging_steps=10,
        eval_strategy="steps", eval_steps=50, save_steps=50, save_total_limit=2, per_device_train_batch_size=4,
        assistant_only_loss=True, packing=True, max_length=128, neftune_noise_alpha=5,
    )  # fmt: skip
    points: list[tuple[int, float]] = []
    trainer = sftcore.SFTTrainer(
        make_llama(tokenizer),
        args=args,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:40]),
        processing_class=tokenizer,
        callbacks=[memory_callback(points)],
    )
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    start = time.monotonic()
    trainer.train()
    return points, time.monotonic() - start


def main() -> None:
    """Run, print the result and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--limit", type=float, default=5.0, help="MiB per 1,000 steps")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sftcore-soak-"))
    try:
        points, seconds = soak(given.steps, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    kept = [(step, mib) for step, mib in points if step > given.steps / 10]
    slope = float(np.polyfit(*zip(*kept, strict=True), 1)[0] * 1000)
    half = [(step, mib) for step, mib in points if step > given.steps / 2]
    later = float(np.polyfit(*zip(*half, strict=True), 1)[0] * 1000)
    print(
        f"{given.steps:,} steps in {seconds:.0f} s: {kept[0][1]:.1f} MiB at step {kept[0][0]:,}, {kept[-1][1]:.1f} MiB "
        f"at step {kept[-1][0]:,}; slope {slope:+.2f} MiB per 1,000 steps, {later:+.2f} over the second half"
    )
    if given.json:
        versions = {name: sys.modules[name].__version__ for name in ("torch", "transformers", "datasets")}
        result = {
            "steps": given.steps, "seconds": seconds, "mib_per_1000_steps": slope, "second_half": later,
            "points": points, "python": platform.python_version(), "threads": os.environ.get("OMP_NUM_THREADS"),
            **versions,
        }  # fmt: skip
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if slope > given.limit else 0)


if __name__ == "__main__":
    main()
