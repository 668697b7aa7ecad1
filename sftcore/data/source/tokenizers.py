"""What the files of a tokenizer say before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from sftcore.core.types import Plan

_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")


def has_chat_template(plan: Plan) -> bool | None:
    """Whether the run's tokenizer has a chat template; None where its files are not on this machine."""
    if plan.settings.get("chat_template_path") or plan.settings.get("chat_template"):
        return True
    if not plan.model.name:
        return None
    folder = Path(plan.model.name).expanduser()
    if not folder.is_dir():
        found = _cached(plan.model.name, plan.model.revision)
        if found is None:
            return None
        folder = found
    if any((folder / name).exists() for name in _TEMPLATES):
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return bool(config.get("chat_template")) if isinstance(config, dict) else None


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of a model of the hub in the local cache."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "tokenizer_config.json", revision=revision)
    except Exception:  # a name that the hub would refuse, or a cache that cannot be read
        return None
    return Path(found).parent if isinstance(found, str) else None
