"""The configurations of this folder with the model and the data that they name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sftcore.config.recipe import load_recipe
from sftcore.importers.bring import Brought, bring
from sftcore.testing.tiny import save_tiny

CONFIGS = Path(__file__).parent / "configs"
FILES = [
    "axolotl-chat.yml", "axolotl-alpaca.yml", "llamafactory-lora.yaml", "llamafactory-full.yaml", "swift-lora.sh",
    "swift-full.sh", "torchtune-lora.yaml", "torchtune-full.yaml", "torchtune-run.sh", "trl-lora.yaml", "trl-full.py",
    "trl-accelerate.sh", "unsloth-chat.py", "unsloth-alpaca.py",
]  # fmt: skip
ROWS = 40


def make_world(folder: Path) -> Path:
    """A folder with the configurations, a tiny model under the name `tiny`, and rows in the files that they read."""
    shutil.copytree(CONFIGS, folder, dirs_exist_ok=True)
    save_tiny(folder / "tiny")
    turns = [[("user", f"say {i}"), ("assistant", f"{i} it is")] for i in range(ROWS)]
    names = {"user": "human", "assistant": "gpt"}
    chat = [{"conversations": [{"from": names[role], "value": text} for role, text in one]} for one in turns]
    talk = [{"messages": [{"role": role, "content": text} for role, text in one]} for one in turns]
    alpaca = [{"instruction": f"say {i}", "input": "", "output": f"{i} it is"} for i in range(ROWS)]
    rows: dict[str, list[dict[str, Any]]] = {
        "chat.jsonl": chat,
        "talk.jsonl": talk,
        "talk-eval.jsonl": talk[:4],
        "alpaca.jsonl": alpaca,
        "alpaca-eval.jsonl": alpaca[:4],
        "prompts.jsonl": [{"prompt": f"say {i} ", "completion": f"{i} it is"} for i in range(ROWS)],
        "questions.jsonl": [{"question": f"say {i}", "answer": f"{i} it is"} for i in range(ROWS)],
    }
    for name, some in rows.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    for name, some in {
        "identity": alpaca[:8],
        "demo": [{**one, "history": []} for one in alpaca],
        "talk": talk,
    }.items():
        (folder / "data" / f"{name}.json").write_text(json.dumps(some), encoding="utf-8")
    return folder


def brought(file: str, *, without_gpu: bool = False) -> Brought:
    """What a configuration becomes; the tool is the first part of its name."""
    return bring(file.partition("-")[0], Path(file), without_gpu=without_gpu)


def recipe_of(text: str, folder: Path, *overrides: str) -> Any:
    """The recipe that an imported text is, read back from a file."""
    path = folder / "imported.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)
