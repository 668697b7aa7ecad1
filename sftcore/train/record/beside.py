"""What is written beside the weights of a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
        BrokenPluginError: one took a file of the model away, or emptied it.
    """
    plugins = trainer.setup.plugins
    saved = {path for path in folder.rglob("*") if path.is_file() and path.stat().st_size}
    for one in plugins.answers("save_model"):
        plugins.ask(one, "save_model", loaded=trainer.loaded, folder=str(folder))
        lost = sorted(path for path in saved if not path.is_file() or not path.stat().st_size)
        if lost:
            raise refused(one, f"its save_model leaves {lost[0].relative_to(folder)} empty or takes it away")
    if not plugins.answers("save_model"):  # there may be a wrapper alone
        plugins.all("save_model", loaded=trainer.loaded, folder=str(folder))
