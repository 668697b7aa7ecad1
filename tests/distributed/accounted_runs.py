"""Runs whose rows are listed: `accounted_runs.py MODEL FOLDER CASE...` runs some of them."""

from __future__ import annotations

import sys
from pathlib import Path

from datasets import Dataset

from sftcore import DataSource, Mixture, SFTConfig, SFTTrainer
from sftcore.testing.libraries import spare_libraries

ROWS = [{"prompt": f"say {i}:", "completion": " hello world" * (1 + i % 4)} for i in range(11)]
CASES = {
    "plain": {},
    "packed": {"packing": True, "max_length": 24},
    "mixed": {"gradient_accumulation_steps": 2},
    "stream": {"max_steps": 3},
}


def run(case: str, model: str, folder: Path) -> SFTTrainer:
    """A run without a learning rate, whose losses do not depend on the order of the rows."""
    data = Dataset.from_list(ROWS)
    if case == "mixed":
        data = Mixture([DataSource(data, "all"), DataSource(Dataset.from_list(ROWS[:3]), "few")])
    if case == "stream":
        data = data.to_iterable_dataset()
    fields = {
        "use_cpu": True, "num_train_epochs": 1, "logging_steps": 1, "learning_rate": 0.0, "save_strategy": "no",
        "report_to": "none", "dataset_cache": False, "disable_tqdm": True, "per_device_train_batch_size": 2,
        "gradient_checkpointing": False, "max_length": 64,
    }  # fmt: skip
    trainer = SFTTrainer(model, SFTConfig(str(folder / case), **{**fields, **CASES[case]}), train_dataset=data)
    trainer.train()
    return trainer


if __name__ == "__main__":
    spare_libraries()
    for one in sys.argv[3:]:
        run(one, sys.argv[1], Path(sys.argv[2]))
