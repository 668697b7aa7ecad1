"""What is known of each field of SFTConfig without importing it: its description, its default, and whose that is."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from sftcore.config.fields import config_fields
from sftcore.config.settings.declared import fields_of, source, training_arguments

OURS, TRANSFORMERS, TRL = "sftcore", "transformers", "TRL"
OF_TRL = frozenset((
    "learning_rate", "logging_steps", "gradient_checkpointing", "model_init_kwargs", "trust_remote_code",
    "chat_template_path", "dataset_text_field", "dataset_kwargs", "dataset_num_proc", "eos_token", "max_length",
    "truncation_mode", "shuffle_dataset", "packing", "packing_strategy", "pad_to_multiple_of", "eval_packing",
    "completion_only_loss", "assistant_only_loss", "loss_type", "activation_offloading", "pad_token",
    "router_aux_loss_coef",
))  # fmt: skip
"""Fields that TRL's SFTConfig has beside those of transformers."""


@frozen
class Described:
    """A field: one sentence on it, its default as plain value, and whose default that is."""

    text: str
    default: Any
    whose: str


@functools.cache
def described_fields() -> Mapping[str, Described]:
    """Each field by name. Of a default that is computed, the value is its expression in `<…>`."""
    text = (Path(__file__).parents[1] / "sft_config.py").read_text(encoding="utf-8")
    own, texts = fields_of(text, "SFTConfig"), _docstrings(text)
    found = {}
    for name in config_fields():
        if name in own:
            found[name] = Described(texts.get(name, ""), _default(own[name].value), TRL if name in OF_TRL else OURS)
        else:
            value = training_arguments()[name].value
            found[name] = Described(_help(value), _default(value), TRANSFORMERS)
    return found


def _docstrings(text: str) -> Mapping[str, str]:
    """The text below each field of SFTConfig, on one line."""
    body = next(node.body for node in ast.parse(text).body if getattr(node, "name", "") == "SFTConfig")  # type: ignore[attr-defined]
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


def _help(value: ast.expr | None) -> str:
    metadata = _keywords(value).get("metadata")
    if isinstance(metadata, ast.Dict):
        for key, text in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "help":
                return " ".join(str(_literal(text)).split())
    return ""


def _default(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):
        given = _keywords(value)
        value = given.get("default", given.get("default_factory", value))
    return None if value is None else _literal(value)


def _keywords(value: ast.expr | None) -> Mapping[str, ast.expr]:
    return {one.arg: one.value for one in value.keywords if one.arg} if isinstance(value, ast.Call) else {}


def _literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        text = ast.unparse(value)
    if text in ("dict", "list"):
        return {} if text == "dict" else []
    if text.isidentifier():  # a name of the module, or of the class
        found = re.findall(rf"^ *{text} = ['\"](\w+)['\"]$", source("transformers.training_args"), re.MULTILINE)
        if len(set(found)) == 1:
            return found[0]
        text = " or ".join(dict.fromkeys(found)) or text  # which one it is depends on the machine
    return f"<{text}>"
