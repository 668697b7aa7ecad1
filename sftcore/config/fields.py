"""The fields of SFTConfig: their names and types, read from source, and the check of what they are given."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sftcore.config.near_names import unknown_key
from sftcore.config.settings.declared import fields_of, training_arguments, type_of
from sftcore.core.errors import RecipeError

DECLARED_OTHERWISE: dict[str, Any] = {
    "fsdp": bool | str | list[str] | None,
    "debug": str | list | None,
    "callbacks": dict[str, Any] | list[str | dict[str, Any]] | str | None,
    "sample_prompts": int | str | list[str | list[dict[str, Any]] | dict[str, Any]] | None,
}
"""Types of fields that are declared for the command line of scripts, and take more (transformers 5.17, 5.24, ours)."""


@functools.cache
def config_fields() -> Mapping[str, Any]:
    """The type of each field of SFTConfig: its own and those of the installed `transformers.TrainingArguments`.

    It is None where plain values cannot represent the class, and is then not checked.
    """
    own = fields_of(Path(__file__).with_name("sft_config.py").read_text(encoding="utf-8"), "SFTConfig")
    nodes = {**training_arguments(), **own}
    return {name: DECLARED_OTHERWISE.get(name, type_of(node.annotation)) for name, node in nodes.items()}


def default_output_dir(model: str) -> str:
    """The output folder of a run that names none, in the current folder: after its model, a hub id or a folder.

    >>> [default_output_dir(model) for model in ("Qwen/Qwen3-0.6B", "models/mine/", r"C:\\models\\mine", "..")]
    ['Qwen3-0.6B-SFT', 'mine-SFT', 'mine-SFT', 'model-SFT']
    """
    names = [part for part in re.split(r"[/\\]", model) if part not in ("", ".", "..")]
    return f"{names[-1] if names else 'model'}-SFT"


def wrong_fields(values: Mapping[str, Any], *, where: str, also: tuple[str, ...] = ()) -> Iterator[RecipeError]:
    """An error for each unknown field, value of the wrong type, unknown name and number out of range."""
    from sftcore.config.settings.values import wrong_value

    known = config_fields()
    for key, value in values.items():
        if key not in known:
            yield unknown_key(key, (*known, *also), where=where)
        elif error := wrong_value(key, value, known[key], where):
            yield error
