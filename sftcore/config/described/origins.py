"""Every value of a run with where it comes from, and how two runs differ in them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from sftcore.config.described.fields import OURS, described_fields
from sftcore.config.fields import default_output_dir
from sftcore.config.recipe import parse_recipe
from sftcore.config.setup import set_up_recipe
from sftcore.core.errors import RecipeError
from sftcore.core.plugin_class import options
from sftcore.core.types import AUTO
from sftcore.util.plain import plain
from sftcore.util.secrets import NOT_WRITTEN

if TYPE_CHECKING:
    from sftcore.config.recipe import Recipe
    from sftcore.config.setup import Setup

MISSING = "—"
"""What stands where a run has no such value."""

_COMMAND_LINE = "command line"
_ONLY_PYTHON = ("plugins", "block", "model_init_kwargs")
_OF_SECTION = ("eval_fraction", "eval_rows", "streaming", "stop")
_NOT_SAID = ("place", "named", "name")


@frozen
class Origin:
    """One value of a run: its dotted path in a recipe, the value as JSON can hold it, and who says so."""

    path: str
    value: Any
    whose: str


def origins(recipe: Recipe, setup: Setup, overridden: Collection[str] = ()) -> Iterator[Origin]:
    """Every value of a run by its path: of the model, the data, the plugins with their options, and SFTConfig.

    What only the machine decides, as whether it has bfloat16, is still open: such a field is None here.

    Args:
        recipe: the recipe.
        setup: its setup.
        overridden: the paths that the command line sets.
    """
    for path, value, whose in _Said(recipe, setup, tuple(overridden)).all():
        ((_, shown),) = plain({path.rpartition(".")[2]: value}).items()  # secrets are known by their name
        yield Origin(path, shown, whose)


def values_of(place: str) -> dict[str, Origin]:
    """The values of another run by their paths: of a recipe, a run's folder, or its manifest.

    Raises:
        RecipeError: there is none, or it cannot be read.
    """
    path = Path(place).expanduser()
    file = path / "manifest.json" if path.is_dir() else path
    if file.suffix != ".json":
        from sftcore.config.recipe import load_recipe

        return _values(load_recipe(file))
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"the manifest of a run cannot be read: {error}.", where=str(file)) from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("settings"), dict):
        fix = "Give a run's folder, or a recipe."
        raise RecipeError("this is not the manifest of a run.", where=str(file), fix=fix)
    if isinstance(manifest.get("recipe"), dict):
        return _values(parse_recipe(_written(manifest["recipe"]), place=str(file)))
    return _from_python(manifest)


def differences(one: Mapping[str, Origin], other: Mapping[str, Origin]) -> Iterator[tuple[str, Any, Any]]:
    """The paths that have other values, with both; MISSING where a run has none.

    The defaults of a plugin that only one of the two runs uses are left out.
    """
    for path in sorted({*one, *other}):
        if path not in one or path not in other:
            found = one.get(path) or other[path]
            if found.whose.startswith("default"):
                continue
        mine, its = (run[path].value if path in run else MISSING for run in (one, other))
        if mine != its or isinstance(mine, bool) != isinstance(its, bool):
            yield path, mine, its


def values_by_path(recipe: Recipe, setup: Setup) -> dict[str, Origin]:
    """The values of a run by their paths."""
    return {one.path: one for one in origins(recipe, setup)}


def _values(recipe: Recipe) -> dict[str, Origin]:
    return values_by_path(recipe, set_up_recipe(recipe))


def _written(value: Any) -> Any:
    """A manifest's recipe without the secrets that it does not hold."""
    if isinstance(value, Mapping):
        return {key: _written(part) for key, part in value.items() if part != NOT_WRITTEN}
    return [_written(part) for part in value] if isinstance(value, list) else value


def _from_python(manifest: Mapping[str, Any]) -> dict[str, Origin]:
    """The values of a run that was started from Python, whose data its manifest does not name."""
    found = {name: value for name, value in manifest["settings"].items() if name not in _ONLY_PYTHON}
    model = manifest.get("model") or {}
    found |= {f"model.{name}": model[name] for name in ("name", "revision", "dtype") if name in model}
    for one in manifest.get("plugins") or ():
        found[one["kind"]] = f"{one['name']}@{one['distribution']}"
        found |= {f"{one['kind']}.{one['name']}.{name}": value for name, value in (one.get("options") or {}).items()}
    return {path: Origin(path, value, "the run") for path, value in found.items()}


@frozen
class _Said:
    """Reads the values off a recipe and its setup, with who says each."""

    recipe: Recipe
    setup: Setup
    overridden: tuple[str, ...]

    def all(self) -> Iterator[tuple[str, Any, str]]:
        yield from self._model()
        yield from self._data()
        yield from self._plugins()
        yield from self._fields()

    def _by(self, path: str) -> str:
        """Who sets a path: the command line where it sets this, or what this is a part of."""
        for key in self.overridden:
            if path == key or path.startswith(f"{key}."):
                return _COMMAND_LINE
        return self.recipe.place

    def _model(self) -> Iterator[tuple[str, Any, str]]:
        raw = self.recipe.raw.get("model")
        given = raw if isinstance(raw, Mapping) else {"name": raw}
        for name in ("name", "revision", "dtype"):
            said = given.get(name) is not None or (name == "dtype" and "torch_dtype" in given)
            whose = self._by(f"model.{name}") if said else f"default of {OURS}"
            yield f"model.{name}", getattr(self.recipe.model, name), whose
        for name, value in self.recipe.model.init_kwargs.items():
            yield f"model.init_kwargs.{name}", value, self._by(f"model.init_kwargs.{name}")

    def _data(self) -> Iterator[tuple[str, Any, str]]:
        data, raw = self.recipe.data, self.recipe.raw.get("data")
        given = raw if isinstance(raw, Mapping) else {}
        sets = {"data.train": data.sources}
        sets |= {f"data.eval.{name}" if name else "data.eval": found for name, found in data.eval_sets.items()}
        for path, sources in sets.items():
            for i, source in enumerate(sources):
                place = path if len(sources) == 1 else f"{path}[{i}]"
                for name, value in attrs.asdict(source, recurse=False).items():
                    if name in _NOT_SAID or value is None:
                        continue
                    default = attrs.fields_dict(type(source))[name].default
                    whose = f"default of {OURS}" if value == default else self._by(f"{path}.{name}")
                    yield f"{place}.{name}", value.name if name == "format" else value, whose
        for name in _OF_SECTION:
            if (value := getattr(data, name, None)) is not None:
                yield f"data.{name}", value, self._by(f"data.{name}") if name in given else f"default of {OURS}"

    def _plugins(self) -> Iterator[tuple[str, Any, str]]:
        for bound in self.setup.plugins.bound:
            kind, chosen = bound.entry.kind, bound.selection
            reason = self.setup.plan.reasons.get(kind, "")
            whose = f"{AUTO}: {reason}" if chosen.path == AUTO and reason else f"default of {OURS}"
            if not chosen.default and chosen.path != AUTO:
                whose = self._by(kind) if kind in self.recipe.raw else chosen.path
            label = f"{bound.entry.name}@{bound.entry.distribution}"
            yield kind, label, whose
            for option in options(type(bound.plugin)):
                name = option.name.lstrip("_")
                path = f"{kind}.{bound.entry.name}.{name}"
                mine = self._by(path) if kind in self.recipe.raw else chosen.path
                yield (
                    path,
                    getattr(bound.plugin, option.name),
                    (mine if name in chosen.options else f"default of the plugin {label}"),
                )

    def _fields(self) -> Iterator[tuple[str, Any, str]]:
        given, settings = self.recipe.training, self.setup.plan.settings
        for name, found in described_fields().items():
            if name in _ONLY_PYTHON:
                continue
            if name in given:
                yield name, given[name], self._by(name)
            elif name == "output_dir":
                yield name, default_output_dir(self.recipe.model.name or "model"), f"default of {OURS}"
            elif name in settings and settings[name] != found.default:
                yield name, settings[name], "follows from other settings"
            else:
                yield name, found.default, f"default of {found.whose}"
