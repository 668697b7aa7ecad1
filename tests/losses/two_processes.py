"""Runs of two processes, started by torchrun: `two_processes.py MODEL OUT JSON`, JSON the fields of SFTConfig by name.

The tests call `run` in their own process for what one process gives.
"""

import json
import sys
from pathlib import Path

from datasets import Dataset

from sftcore import SFTConfig, SFTTrainer
from sftcore.testing.libraries import spare_libraries


def run(model: str, out: Path, fields: dict) -> None:
    # rows of very different lengths, so that a mean of means would not be the mean over tokens
    rows = [{"prompt": f"say {i}:", "completion": " hello" * (1 + 7 * (i % 2) + i % 3)} for i in range(16)]
    trainer = SFTTrainer(model, SFTConfig(str(out), use_cpu=True, **fields), train_dataset=Dataset.from_list(rows))
    trainer.train()
    trainer.save_model()
    if trainer.is_world_process_zero():
        trainer.save_state()


if __name__ == "__main__":
    spare_libraries()
    for name, fields in json.loads(sys.argv[3]).items():
        run(sys.argv[1], Path(sys.argv[2]) / name, fields)
