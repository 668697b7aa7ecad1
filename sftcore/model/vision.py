"""Finds the vision parts of a vision-language model: the tower, and what connects it to the language layers.

What processors make of images and sounds goes to these parts in the dtype of their weights.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import define, field

from sftcore.config.probe import reads_images
from sftcore.core.errors import ModelError
from sftcore.model.unwrap import causal_model

if TYPE_CHECKING:
    import torch

_SIGHT = ("pixel", "image", "video", "vision", "patch")
_SOUND = ("audio", "speech", "sound", "input_features")
"""What processors' names for images and sounds contain; other floats of a batch are the user's, and stay."""


def vision_parts(model: Any) -> list[str]:
    """Names of the topmost modules outside the language layers and the head; [] for a text model.

    Raises:
        ModelError: the model has a vision tower, but does not say which modules are its language layers.
    """
    model = causal_model(model)
    if not reads_images(model.config):
        return []
    language = {id(module) for module in (model.get_decoder(), model.get_output_embeddings()) if module is not None}
    names = list(_without(model, "", language)) or parts_with_codes(model)
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


# --- What stays as it is ----------------------------------------------------------------------------------------------
def parts_with_codes(model: Any) -> list[str]:
    """Names of the modules that turn images into codes, which no gradient passes (Emu3, Chameleon, Janus)."""
    model = causal_model(model)
    kind = type(getattr(model.config, "vq_config", None))
    if kind is type(None) or kind is dict:
        return []
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, "config", None), kind) and not any(name.startswith(f"{one}.") for one in found):
            found.append(name)
    return found


def freeze_codes(model: Any) -> tuple[str, ...]:
    """Freeze what turns images into codes, and return a note about it: transformers makes it frozen, but for a flag."""
    model = causal_model(model)
    names = parts_with_codes(model)
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    return (f"what turns images into codes is frozen: {', '.join(names)}",) if names else ()


@contextmanager
def frozen_statistics(model: Any) -> Iterator[None]:
    """Keep frozen parts from changing in training mode: batch normalisation normalises by its statistics inside.

    In training mode it would take those of each batch, so that rows change one another, and write them into what is
    saved. What turns images into codes stays in evaluation mode as a whole.
    """
    model = causal_model(model)
    held = {id(one): one for one in _with_statistics(model)}
    held.update({id(one): one for one in map(model.get_submodule, parts_with_codes(model))})
    for one in held.values():
        one.eval()
        vars(one)["train"] = functools.partial(_stays, one)  # the loop calls it before each step
    try:
        yield
    finally:
        for one in held.values():
            vars(one).pop("train", None)
            one.train(model.training)


def _stays(module: Any, mode: bool = True) -> Any:
    return module


def _with_statistics(module: Any) -> Iterator[Any]:
    """The modules of frozen parts that keep running statistics."""
    weights = list(module.parameters())
    if weights and not any(one.requires_grad for one in weights):
        yield from (one for one in module.modules() if getattr(one, "running_mean", None) is not None)
        return
    for child in module.children():
        yield from _with_statistics(child)


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


@define
class FeatureDtypes:
    """Puts what a processor made of images and sounds into the dtype of the part of the model that takes it.

    Most models do that themselves. Llama 4's processor gives bfloat16 whatever its tower has, and others give float32
    to a tower in bfloat16. The dtype is that of the part's first weight in 16, 32 or 64 bits, so that of its embedding:
    in a quantised model what was left in floats. It is found at the first batch, when the run has placed the model.
    """

    model: Any
    _found: dict[bool, torch.dtype | None] = field(factory=dict)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch, with images and sounds that are floats in the dtype of what takes them."""
        changed: dict[str, Any] = {}
        for name, value in batch.items():
            sound = any(part in name for part in _SOUND)
            if not sound and not any(part in name for part in _SIGHT):
                continue
            if not hasattr(value, "is_floating_point") or not value.is_floating_point():
                continue
            if sound not in self._found:
                self._found[sound] = _dtype_of_part(causal_model(self.model), sound=sound)
            dtype = self._found[sound]
            if dtype is not None and value.dtype != dtype:
                changed[name] = value.to(dtype)
        return {**batch, **changed} if changed else batch


def _dtype_of_part(model: Any, *, sound: bool) -> torch.dtype | None:
    """The dtype of the first float weight in the parts that take sounds, or in those that take images."""
    import torch

    if not hasattr(model, "get_decoder"):
        return None
    language = {id(module) for module in (model.get_decoder(), model.get_output_embeddings()) if module is not None}
    if id(model) in language:
        return None
    names = list(_without(model, "", language))
    of_sound = [name for name in names if any(part in name for part in _SOUND)]
    chosen = of_sound if sound else [name for name in names if name not in of_sound]
    weights = (one.dtype for name in chosen or names for one in model.get_submodule(name).parameters())
    whole = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return next((dtype for dtype in weights if dtype in whole), None)
