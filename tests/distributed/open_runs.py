"""Runs that leave attention and layout open: `open_runs.py MODEL FOLDER CASE...`, in one process or in several."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from datasets import Dataset, IterableDataset

from sftcore import SFTConfig, SFTTrainer
from sftcore.core.errors import ModelError
from sftcore.documents import settle
from sftcore.testing.libraries import spare_libraries

ROWS = [{"prompt": f"say {i}:", "completion": " hello" * (1 + i % 5)} for i in range(18)]
FIELDS = {
    "use_cpu": True, "max_steps": 3, "logging_steps": 1, "learning_rate": 0.01, "save_strategy": "no",
    "report_to": "none", "eval_strategy": "steps", "eval_steps": 3, "dataset_cache": False, "disable_tqdm": True,
    "lr_scheduler_type": "constant", "gradient_checkpointing": False,
}  # fmt: skip
CASES = {
    "open": {},
    "stream": {},
    "packed": {"packing": True, "max_length": 48},
    "padded": {"padding_free": False, "plugins": {"attention": "sdpa"}},
    "padded-stream": {"padding_free": False, "plugins": {"attention": "sdpa"}},
    "one-fails": {},
}


def run(case: str, model: str, folder: Path) -> None:
    """Train, and write what was logged and taken into the folder, in a file for each rank."""
    world, index = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    rows = IterableDataset.from_generator(lambda: iter(ROWS * 2)) if "stream" in case else Dataset.from_list(ROWS)
    args = SFTConfig(str(folder / case), per_device_train_batch_size=6 // world, **FIELDS, **CASES[case])
    trainer = SFTTrainer(model, args, train_dataset=rows, eval_dataset=Dataset.from_list(ROWS))
    if case == "one-fails" and index == 1:
        settle.Settling._compare = _fail
    trainer.train()
    logged = [one for one in trainer.state.log_history if "loss" in one or "eval_loss" in one]
    taken = [trainer.model.config._attn_implementation, trainer.padding_free, list(trainer.loaded.notes)]
    (folder / f"{case}-{index}.json").write_text(json.dumps({"logged": logged, "taken": taken}))


def _fail(self, found):
    raise ModelError("this rank alone finds a fault")


if __name__ == "__main__":
    spare_libraries()
    for _case in sys.argv[3:]:
        run(_case, sys.argv[1], Path(sys.argv[2]))
