"""What the files of a tokenizer say before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from sftcore.config.settings.templates import large_files
from sftcore.core.types import Plan

_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")


def has_chat_template(plan: Plan) -> bool | None:
    """Whether the run's tokenizer has a chat template; None where its files are not on this machine."""
    if plan.settings.get("chat_template_path") or plan.settings.get("chat_template"):
        return True
    if not plan.model.name:
        return None
    folder = tokenizer_folder(plan.model.name, plan.model.revision)
    if folder is None:
        return None
    if any((folder / name).exists() for name in _TEMPLATES):
        return True
    if any(large_files(folder)):  # which are refused before anything is loaded
        return None
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return bool(config.get("chat_template")) if isinstance(config, dict) else None


def tokenizer_folder(name: str, revision: str | None) -> Path | None:
    """Where the files of a model's tokenizer are, or None where they are not on this machine."""
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else _cached(name, revision)


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of a model of the hub in the local cache."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "tokenizer_config.json", revision=revision)
    except Exception:  # a name that the hub would refuse, or a cache that cannot be read
        return None
    return Path(found).parent if isinstance(found, str) else None
