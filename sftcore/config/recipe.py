"""A recipe: YAML, overrides from the command line, or both, in one frozen value.

model: HuggingFaceTB/SmolLM2-135M-Instruct   # or {name: …, revision: …, dtype: …, init_kwargs: {…}}
data: train.jsonl                            # or a list of sources, or {train: …, eval: …, eval_fraction: 0.05}
format: auto                                 # one key per kind of plugin: a name, or {name: {option: value}}
adapter: {lora: {r: 16}}
learning_rate: 2e-4                          # and any field of SFTConfig
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from attrs import evolve, field, frozen

from sftcore.config import yaml12
from sftcore.config.data.parse import parse_data
from sftcore.config.data.section import DataSection
from sftcore.config.fields import config_fields, wrong_fields
from sftcore.config.near_names import REQUIRED, unknown_inside, wrong_keys
from sftcore.config.plugins.blocked import Blocklist
from sftcore.config.plugins.bound import resolve
from sftcore.config.selections import parse_choice
from sftcore.config.settings.older_names import OLDER, use_current_names
from sftcore.config.settings.rhythm import per_epoch
from sftcore.config.settings.values import as_ours, wrong_dtype
from sftcore.core.discovery import discover
from sftcore.core.errors import OptionTypeError, RecipeError, SFTCoreError, raise_all
from sftcore.core.options import structure
from sftcore.core.types import KINDS, ModelRequest, Selection
from sftcore.util.secrets import masked
from sftcore.util.warned import warn

T = TypeVar("T")
SECTIONS = ("model", "data", *KINDS, "block")
LAST = "last"
AUTO = "auto"
"""Values of `resume_from_checkpoint` for the newest complete checkpoint: "last" requires one, "auto" does not."""
_FIELDS_WITH_A_KEY = {
    "plugins": "the kinds' own keys",
    "block": "block",
    "model_init_kwargs": "model: {init_kwargs: …}",
}


@frozen
class Recipe:
    """What a user asks for. `training` holds fields of SFTConfig; `place` names the recipe in errors."""

    model: ModelRequest
    data: DataSection
    chosen: tuple[Selection, ...] = ()
    training: Mapping[str, Any] = field(factory=dict)
    block: tuple[str, ...] = ()
    place: str = "recipe"
    raw: Mapping[str, Any] = field(factory=dict, eq=False)
    """The recipe as plain values after overrides, which the manifest records."""

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of SFTConfig with what evaluation data imply: an evaluation after each epoch."""
        given = {**({"eval_strategy": "epoch"} if self.data.evaluates else {}), **self.training}
        return {**given, **per_epoch(self.training)}


def load_recipe(path: str | Path | None, overrides: Sequence[str] = (), *, block: Iterable[str] = ()) -> Recipe:
    """Read a recipe file, apply `key=value` overrides (dotted keys reach into mappings), and check its shape.

    Raises:
        RecipeError: the file does not exist, is not YAML, or lacks a section.
        UnknownKeyError, OptionTypeError: names the path of the key inside the recipe.
    """
    place = str(path) if path else "command line"
    raw = _read(Path(path)) if path else {}
    return parse_recipe(overridden(raw, overrides), place=place, block=block)


def overridden(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A recipe's plain values with `key=value` overrides applied.

    Raises:
        RecipeError: an override is malformed, or reaches into a value that is not a mapping.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            name, colon, value = override.partition(":")
            shown = f"{name}:{masked({name: value})[name]}" if colon else masked(override)
            raise RecipeError(
                f'"{shown}" is not an override.',
                where="command line",
                fix="Write key=value, without spaces around the =, and a value that has spaces in quotes.",
            )
        _assign(raw, key.strip().split("."), yaml12.load(text, where=f"override {key}") if text.strip() else "", key)
    return raw


def parse_recipe(raw: Mapping[str, Any], *, place: str = "recipe", block: Iterable[str] = ()) -> Recipe:
    """Parse a recipe from plain values; `block` extends the recipe's own blocklist.

    Raises:
        SFTCoreError: the one mistake that was found, or a SettingsError with all of them, those in the options of
            plugins among them.
    """
    known = {*SECTIONS, *_FIELDS_WITH_A_KEY, *OLDER, *config_fields()}
    errors: list[SFTCoreError] = [*wrong_keys(raw, known, where=place)]
    training = {key: as_ours(key, value) for key, value in raw.items() if key not in SECTIONS and key in known}

    def tried(make: Callable[[], T], instead: T) -> T:
        try:
            return make()
        except SFTCoreError as error:
            errors.append(error)
            return instead

    tried(lambda: use_current_names(training, where=place), None)
    for key in [key for key in training if key in _FIELDS_WITH_A_KEY]:
        del training[key]
        what = f'"{key}" is only for Python; in a recipe, use {_FIELDS_WITH_A_KEY[key]}.'
        errors.append(RecipeError(what, where=place))
    if isinstance(resume := training.get("resume_from_checkpoint"), bool):
        training["resume_from_checkpoint"] = LAST if resume else None
    errors += wrong_fields({key: value for key, value in training.items() if key not in OLDER}, where=place)
    given = {section: raw[section] for section in REQUIRED if raw.get(section) not in (None, "")}
    model = tried(lambda: _model(given["model"], place), ModelRequest()) if "model" in given else ModelRequest()
    data = parse_data(given["data"], place, errors) if "data" in given else DataSection()
    chosen: list[Selection] = []
    for kind in KINDS:
        if kind in raw:
            chosen += tried(functools.partial(parse_choice, kind, raw[kind], where=place), [])
    blocked = raw.get("block") or ()
    listed = [blocked] if isinstance(blocked, str) else blocked
    patterns = (*tried(lambda: structure(listed, list[str], path=f"{place}: block"), ()), *block)
    if errors:
        formats = [[one.format] for one in data.every if one.format is not None]
        for some in (chosen, *formats):
            tried(functools.partial(_resolved, some, patterns, place), None)
    raise_all(errors)
    return Recipe(model, data, tuple(chosen), training, patterns, place, dict(raw))


def _resolved(chosen: Sequence[Selection], patterns: Iterable[str], place: str) -> None:
    """Refuse plugins that cannot be had, and options that they do not take."""
    resolve(chosen, discover(), Blocklist.parse(patterns, where=f"{place}: block"))


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe at {path}.", fix="Give a YAML file, or only key=value pairs.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe cannot be read: {error}.", where=str(path)) from None
    raw = yaml12.load(text, where=str(path))
    if not isinstance(raw, dict):
        raise RecipeError(
            "a recipe must be a mapping of keys to values.", where=str(path), fix="Start with model: and data:."
        )
    return {str(key): value for key, value in raw.items()}


def _assign(raw: dict[str, Any], keys: list[str], value: Any, spelled: str) -> None:
    """Set a dotted key; a name on its path becomes a mapping, so that `adapter: lora` accepts `adapter.lora.r=8`."""
    *parents, last = keys
    node = raw
    for parent in parents:
        below = node.get(parent)
        if below is None:
            below = {}
        elif isinstance(below, str):
            key = {"model": "name", "data": "train"}.get(parent)
            below = {key: below} if key else {below: {}}
        if not isinstance(below, dict):
            raise RecipeError(f'"{parent}" is {below!r}, so nothing can be set inside it.', where=f"override {spelled}")
        node[parent] = below
        node = below
    node[last] = value


def _model(value: Any, place: str) -> ModelRequest:
    where = f"{place}: model"
    if isinstance(value, str):
        return ModelRequest(value, dtype="float32")
    if not isinstance(value, Mapping):
        raise OptionTypeError(f"expected a name or a mapping, got {type(value).__name__} {value!r}.", where=where)
    types = {"name": str, "revision": str, "dtype": str, "init_kwargs": dict[str, Any]}
    given = dict(value)
    if "torch_dtype" in given:
        warn(f"{where}: torch_dtype is now dtype.", FutureWarning)
        given.setdefault("dtype", given.pop("torch_dtype"))
    known = _typed(given, types, where)
    if "name" not in known:
        raise RecipeError('the key "name" is missing.', where=where, fix="Write model: {name: …}.")
    for dtype in (known.get("dtype"), known.get("init_kwargs", {}).get("dtype")):
        if error := wrong_dtype(dtype, where):
            raise error
    return evolve(ModelRequest(dtype="float32"), **known)


def _typed(value: Mapping[str, Any], types: Mapping[str, Any], where: str) -> dict[str, Any]:
    for key in value:
        if key not in types:
            section, top = where.rpartition(" ")[2], (*SECTIONS, *config_fields())
            raise unknown_inside(section, str(key), types, where=where, given=value, top=top)
    return {key: structure(got, types[key], path=f"{where}.{key}") for key, got in value.items()}
