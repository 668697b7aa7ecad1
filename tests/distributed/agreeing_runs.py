"""What two processes decide together: `agreeing_runs.py MODEL FOLDER`, started by `ranked_runs.start`."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftcore import SFTConfig, SFTTrainer
from sftcore.data.ranks import decided_by_first
from sftcore.documents.proof import keep_documents_apart
from sftcore.documents.ways import POSITIONS, Way
from sftcore.testing.libraries import spare_libraries
from tests.conftest import alpaca_rows
from tests.distributed.ranked_runs import FIELDS, LAYERS, LORA, dataset, shard_on_cpu

INDEX = int(os.environ.get("RANK", "0"))


def settings(folder: Path, **fields: Any) -> SFTConfig:
    common = {**FIELDS, "num_train_epochs": 1, "max_steps": 2, "eval_strategy": "no", "per_device_train_batch_size": 4}
    return SFTConfig(str(folder), **{**common, **fields})


def answer() -> str:
    return f"of {INDEX}"


def way_that_fails_in_the_second(model: Any) -> str:
    """The way that is taken where the first one fails in the second process alone."""
    leaking = Way("leaking", "nothing", lambda batch: {"input_ids": batch["input_ids"]} if INDEX else dict(batch))
    return keep_documents_apart(model, None, flattened=False, ways=[leaking, POSITIONS]).way.name


def said_of_tokens(model: Any, folder: Path) -> list[str]:
    """What is said of tokens that the model does not know, where the second process holds no weights yet."""
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("<|im_start|>")] = 0
        for one in model.parameters() if INDEX else ():
            one.zero_()
    rows = Dataset.from_list([{"messages": turns(one)} for one in alpaca_rows(16)])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer = SFTTrainer(
            model, settings(folder / "tokens", plugins=LORA), train_dataset=rows, processing_class=tokenizer
        )
    return [*trainer.loaded.notes, *(str(one.message) for one in told if "has not learned" in str(one.message))]


def turns(row: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": row["instruction"]},
        {"role": "assistant", "content": row["output"]},
    ]


def sharded(folder: Path, *, lazily: bool) -> dict[str, Any]:
    """Two steps of a sharded adapter on packed rows, whose base the first process alone may have read."""
    for name in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        os.environ[name] = str(lazily).lower()
    os.environ["FSDP_VERSION"] = "2"
    sharding = {**LAYERS, "cpu_ram_efficient_loading": lazily}
    fields = {
        "fsdp": True,
        "fsdp_config": sharding,
        "plugins": {**LORA, "attention": "sdpa"},
        "packing": True,
        "max_length": 48,
    }
    args = settings(folder / f"sharded-{lazily}", **fields)
    shard_on_cpu()
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    trainer = SFTTrainer(
        sys.argv[1], args, train_dataset=dataset("full", 0, 23, tokenizer), formatting_func=lambda one: one["said"]
    )
    trainer.train()
    return {
        "losses": [one["loss"] for one in trainer.state.log_history if "loss" in one],
        "gathers": trainer.bound_loss.gathers,
        "way": trainer.shared_rows.proof.way.name,
        "notes": list(trainer.loaded.notes),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    torch.set_num_threads(1)
    spare_libraries()
    settings(folder)  # which starts the group of processes
    found = {
        "answer": decided_by_first(answer),
        "way": way_that_fails_in_the_second(AutoModelForCausalLM.from_pretrained(sys.argv[1])),
        "tokens": said_of_tokens(AutoModelForCausalLM.from_pretrained(sys.argv[1]), folder),
        "plain": sharded(folder, lazily=False),
        "lazy": sharded(folder, lazily=True),
    }
    (folder / f"{INDEX}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
