"""Finds the vision parts of a vision-language model: the tower, and what connects it to the language layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sftcore.core.errors import ModelError
from sftcore.model.unwrap import causal_model


def vision_parts(model: Any) -> list[str]:
    """Names of the topmost modules outside the language layers and the head; [] for a text model.

    Raises:
        ModelError: the model has a vision tower, but does not say which modules are its language layers.
    """
    model = causal_model(model)
    if not hasattr(model.config, "vision_config"):
        return []
    language = {id(module) for module in (model.get_decoder(), model.get_output_embeddings()) if module is not None}
    names = list(_without(model, "", language))
    if not names or id(model) in language:
        raise ModelError(
            f"{type(model).__name__} does not say which modules are its vision tower and which its language layers.",
            fix="Name the modules yourself (target_modules or exclude_modules of the adapter).",
        )
    return names


def freeze_vision(model: Any, wanted: bool | None) -> tuple[str, ...]:
    """Freeze the vision parts if wanted, and return a note about it."""
    if not wanted or not (names := vision_parts(model)):
        return ()
    model = causal_model(model)
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    return (f"the vision tower is frozen: {', '.join(names)}",)


def _without(module: Any, name: str, language: set[int]) -> Iterator[str]:
    """The topmost modules below this one that contain no language layer."""
    for key, child in module.named_children():
        path = f"{name}.{key}" if name else key
        inside = {id(one) for one in child.modules()}
        if id(child) in language:
            continue
        if inside & language:
            yield from _without(child, path, language)
        elif any(True for _ in child.parameters()):
            yield path
