"""One short run that reports to trackers, with names that are hard on them, and what is expected in their files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from attrs import frozen
from datasets import Dataset
from transformers import TrainerCallback

from sftcore import DataSource, Mixture, SFTConfig, SFTTrainer
from tests.conftest import make_llama, make_tokenizer

SOURCES = ("a/b:c", "../../etc/passwd", "/tmp//x.jsonl", "數據 (1)?", "數據 (1)*", "[red]\x1b[31mx\u202e", "a", "a/b")
"""Names of sources: paths that lead elsewhere, two that differ in a sign that MLflow does not take, hidden signs."""
LONG = "{% for m in messages %}{{ m.content }}{% endfor %}{# " + "plan " * 2000 + "#}"
"""A setting of 10,000 characters."""
OFFLINE = {
    "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_DISABLE_GIT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GRADIO_ANALYTICS_ENABLED": "False",
}  # fmt: skip
"""Variables with which no tracker asks the network for anything."""


@frozen
class Tracked:
    """What a run has logged, in order, with the step of each entry; and the folder that it wrote to."""

    trainer: SFTTrainer
    folder: Path
    logged: tuple[tuple[int, dict[str, float]], ...]

    def points(self) -> list[tuple[str, int, float]]:
        """Each number that was logged: its name, its step and itself."""
        return [(name, step, value) for step, entry in self.logged for name, value in entry.items()]


class Heard(TrainerCallback):
    """What trackers were given: a callback of the user's sees the same."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args, state, control, logs=None, **_):
        self.entries.append((state.global_step, dict(logs)))


def rows(name: str, count: int = 3) -> Dataset:
    return Dataset.from_list([{"text": f"{name[:1]} row {i} {'x' * i}"} for i in range(count)])


def tracked_run(folder: Path, report_to: Any, **fields: Any) -> Tracked:
    """Train two steps on sources with such names, evaluate two sets, and once more after the end."""
    tokenizer, heard = make_tokenizer(), Heard()
    own = {
        "max_steps": 2, "logging_steps": 1, "use_cpu": True, "save_strategy": "no", "report_html": False,
        "eval_strategy": "steps", "eval_steps": 1, "per_device_train_batch_size": 12, "max_length": 12,
        "chat_template": LONG, "dataset_num_proc": None,
    }  # fmt: skip
    args = SFTConfig(str(folder / "out"), report_to=report_to, **{**own, **fields})
    mixture = Mixture([DataSource(rows(name), name=name) for name in SOURCES])
    trainer = SFTTrainer(
        make_llama(tokenizer), args, train_dataset=mixture, eval_dataset={"dev": rows("d"), "數據": rows("e")},
        processing_class=tokenizer, callbacks=[heard],
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    return Tracked(trainer, folder, tuple(heard.entries))


def rewritten(name: str) -> str:
    """The name under which transformers' trackers file a figure."""
    for part in ("eval", "test"):
        if name.startswith(f"{part}_"):
            return f"{part}/{name.removeprefix(f'{part}_')}"
    return f"train/{name}"


def expected_facts(run: Tracked) -> dict[str, str]:
    """Some of the facts, from the run's own files."""
    ledgers = json.loads((run.folder / "out" / "ledger.json").read_text())["ledgers"]
    found = {}
    for ledger in ledgers:
        name = ledger["name"]
        found |= {
            f"sftcore/data/{name}/rows": str(ledger["rows_in"]),
            f"sftcore/data/{name}/rows_cut": str(ledger["rows_cut"]),
            f"sftcore/data/{name}/rows_kept": str(ledger["rows_kept"]),
            f"sftcore/data/{name}/tokens_supervised": str(ledger["tokens_supervised"]),
        }
    return found


def readable(name: str) -> bool:
    """Whether a name holds nothing that steers a terminal or a reader's eye."""
    return re.search(r"[\x00-\x1f\u202a-\u202e]", name) is None
