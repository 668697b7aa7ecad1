"""The trainers and rows of the cases that several processes and one have to answer alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer

from sftcore import SFTConfig, SFTTrainer
from tests.distributed.ranked_runs import of_files, shard_on_cpu

WORLD, INDEX = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
FIELDS = {
    "use_cpu": True, "logging_steps": 1, "learning_rate": 0.01, "optim": "adamw_torch", "save_strategy": "no",
    "lr_scheduler_type": "constant", "report_to": "none", "dataset_cache": False, "disable_tqdm": True,
    "max_length": 64, "gradient_checkpointing": False,
}  # fmt: skip
PADDED = {"padding_free": False, "plugins": {"attention": "sdpa"}}
BATCH = 4
"""Rows of an evaluated batch, over all processes."""


class Run:
    """The model and the folder of all cases."""

    def __init__(self, model: str, folder: str) -> None:
        self.model, self.folder = model, Path(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(model)

    def trainer(self, name: str, rows: Any, *, kind: type = SFTTrainer, batch: int = 8, **given: Any) -> SFTTrainer:
        """A trainer of `batch` rows a step over all processes."""
        arguments = {
            one: given.pop(one)
            for one in (
                "eval_dataset",
                "compute_metrics",
                "preprocess_logits_for_metrics",
                "callbacks",
                "compute_loss_func",
                "formatting_func",
                "peft_config",
            )
            if one in given
        }
        fields = {**FIELDS, "per_device_train_batch_size": batch // WORLD, "per_device_eval_batch_size": BATCH // WORLD}
        args = SFTConfig(str(self.folder / name), **{**fields, "max_steps": 1, **given})
        if args.fsdp:
            shard_on_cpu()
        return kind(self.model, args, train_dataset=rows, processing_class=self.tokenizer, **arguments)

    def texts(self, ids: Any) -> list[str]:
        """The texts of rows of labels, or of inputs."""
        return [self.tokenizer.decode([one for one in row if one >= 0 and one != self.pad]) for row in ids]

    @property
    def pad(self) -> int:
        return int(self.tokenizer.pad_token_id)


def rows(count: int) -> list[dict[str, str]]:
    return [{"text": f"row {i} ." + " hello" * (i * 5 % 7)} for i in range(count)]


def equal_rows(count: int) -> list[dict[str, str]]:
    return [{"text": f"row {i % 10} . hello hello ."} for i in range(count)]


def stream(found: list[dict[str, str]]) -> IterableDataset:
    return Dataset.from_list(found).to_iterable_dataset()


def files(found: list[dict[str, str]], cut: int) -> IterableDataset:
    return IterableDataset.from_generator(of_files, gen_kwargs={"files": [found[:cut], found[cut:]]})


def logged(trainer: SFTTrainer) -> list[dict[str, float]]:
    names = ("loss", "grad_norm", "eval_loss", "num_tokens", "step")
    return [{name: one[name] for name in names if name in one} for one in trainer.state.log_history[:-1]]
