"""Small runs that save often, and what they leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import make_llama, make_tokenizer

STEPS = 6


def trainer(output_dir: Path, **fields: Any):
    """A run of six steps on a tiny Llama, with a checkpoint after every second."""
    from datasets import Dataset

    from sftcore import SFTConfig, SFTTrainer

    rows = Dataset.from_list([{"prompt": f"say {i}", "completion": f"The answer is {i}"} for i in range(24)])
    settings: dict[str, Any] = {
        "max_steps": STEPS, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2, "report_to": "none",
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    tokenizer = make_tokenizer()
    args = SFTConfig(output_dir=str(output_dir), **{**settings, **fields})
    model = make_llama(tokenizer, attention_dropout=0.1)
    evaluated = rows if "eval_strategy" in fields else None
    return SFTTrainer(model, args, train_dataset=rows, eval_dataset=evaluated, processing_class=tokenizer)


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "checkpoint-" in path.name)
