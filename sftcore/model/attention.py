"""The attention that a model really runs, as its configuration and its layers tell it."""

from __future__ import annotations

import inspect
from typing import Any

from sftcore.model.unwrap import causal_model

_LIBRARIES = ("transformers", "transformers_modules", "torch", "accelerate", "peft", "deepspeed")
"""Whose wrappers around a layer's forward leave its attention to the configuration."""


def running_attention(model: Any) -> str:
    """The attention of the language layers and, where they differ, of the other parts, as transformers names them.

    A layer whose forward another library has replaced, as Unsloth does, runs that library's own.
    """
    if replaced := replaced_attention(model):
        return replaced
    config = causal_model(model).config
    parts = {"": _named(config)}
    for name in getattr(config, "sub_configs", None) or ():
        if (part := getattr(config, name, None)) is not None:
            parts[name.removesuffix("_config")] = _named(part)
    language = parts.get("text") or parts[""]
    others = [f"{part} {name}" for part, name in parts.items() if part not in ("", "text") and name != language]
    return ", ".join([language, *others])


def _named(config: Any) -> str:
    return str(getattr(config, "_attn_implementation", None) or "of its own code")


def replaced_attention(model: Any) -> str:
    """The module of another library in which the forward of an attention layer is defined; empty without any."""
    for module in causal_model(model).modules():
        kind = type(module)
        if "attention" not in kind.__name__.lower():
            continue
        forward = inspect.unwrap(vars(module).get("forward", kind.forward))
        home = getattr(forward, "__module__", None) or ""
        if home != kind.__module__ and home.partition(".")[0] not in (*_LIBRARIES, ""):
            return str(home)
    return ""
