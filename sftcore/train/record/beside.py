"""What is written beside the weights of a saved model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sftcore.core.errors import said_by
from sftcore.model.embeddings import num_rows, save_grown_rows
from sftcore.model.unwrap import is_peft_model
from sftcore.train.record.card import write_card
from sftcore.util.claims import refused


def write_beside(trainer: Any, folder: Path, state_dict: dict[str, Any] | None) -> None:
    """Write rows by which embeddings have grown, plugins' files, stops, card, parity and manifest.

    Args:
        trainer: the trainer that saves.
        folder: where its model was saved.
        state_dict: the weights, where they were gathered.
    """
    model = trainer.loaded.model
    if is_peft_model(model) and num_rows(model) != trainer.rows_as_loaded:
        save_grown_rows(model, folder, state_dict)
    _save_of_plugins(trainer, folder)
    if is_peft_model(model) and model.generation_config is not None:
        # PEFT saves the adapter alone, and the base's own stops may be others
        model.generation_config.to_json_file(folder / "generation_config.json")
    write_card(trainer, folder)
    trainer.recorder.check_parity(folder)
    trainer.recorder.write_manifest(folder)


def _save_of_plugins(trainer: Any, folder: Path) -> None:
    """Let plugins add their files.

    Raises:
        BrokenPluginError: one took a file of the model away, emptied it, or left nothing that can be read in it.
    """
    plugins = trainer.setup.plugins
    found = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    saved = {path: _stamp(path) for path in found} if plugins.answers("save_model") else {}
    for one in plugins.answers("save_model"):
        plugins.ask(one, "save_model", loaded=trainer.loaded, folder=str(folder))
        lost = sorted(path for path in saved if not path.is_file() or not path.stat().st_size)
        if lost:
            raise refused(one, f"its save_model leaves {lost[0].relative_to(folder)} empty or takes it away")
        for path in sorted(saved):
            if (stamp := _stamp(path)) != saved[path] and (what := _damage(path)):
                raise refused(one, f"its save_model leaves {path.relative_to(folder)} damaged: {what}")
            saved[path] = stamp
    if not plugins.answers("save_model"):  # there may be a wrapper alone
        plugins.all("save_model", loaded=trainer.loaded, folder=str(folder))


def _stamp(path: Path) -> tuple[int, int]:
    return path.stat().st_size, path.stat().st_mtime_ns


def _damage(path: Path) -> str:
    """What is wrong with a file that was written anew; empty where it can be read."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
            if path.name == "config.json" and "model_type" not in json.loads(path.read_bytes()):
                return "it names no model_type"
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:
                opened.keys()
    except (SafetensorError, ValueError) as error:
        return said_by(error)
    return ""
