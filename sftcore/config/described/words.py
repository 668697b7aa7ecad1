"""The words that a shell can complete: keys of a recipe with their dots, and after `=` what they may be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sftcore.config.data.parse import SECTION_KEYS
from sftcore.config.fields import config_fields
from sftcore.config.plugins.bound import OPEN, by_itself
from sftcore.config.settings.values import DTYPES, names_of
from sftcore.core.discovery import Catalog
from sftcore.core.errors import SFTCoreError
from sftcore.core.plugin_class import options
from sftcore.core.types import AUTO, KINDS

_IN_MODEL = ("dtype", "init_kwargs.", "name", "revision")
_ONLY_PYTHON = ("plugins", "model_init_kwargs")


def completed(word: str, before: Sequence[str], catalog: Catalog) -> list[str]:
    """What a word of a command line may become, of `key=value` pairs.

    Bash takes `=` for a word of its own, so that the value alone is asked for, with the key and `=` before it; other
    shells ask for the whole.

    Args:
        word: what stands there.
        before: the words before it.
        catalog: the installed plugins.

    >>> completed("gradient_acc", [], Catalog(()))
    ['gradient_accumulation_steps=']
    >>> completed("lr_scheduler_type=inv", [], Catalog(())), completed("inv", ["lr_scheduler_type", "="], Catalog(()))
    (['lr_scheduler_type=inverse_sqrt'], ['inverse_sqrt'])
    """
    if word in ("", "=") and before and list(_values(before[-1], catalog)):  # click hands on "=" as nothing
        return list(_values(before[-1], catalog))
    if len(before) >= 2 and before[-1] == "=":
        return [value for value in _values(before[-2], catalog) if value.startswith(word)]
    key, equals, value = word.partition("=")
    if equals:
        return [f"{key}={one}" for one in _values(key, catalog) if one.startswith(value)]
    return [one for one in _keys(key, catalog) if one.startswith(word)]


def _keys(word: str, catalog: Catalog) -> Iterable[str]:
    """Keys with `=`; and of the section that is begun, the keys in it."""
    parts = word.split(".")
    if len(parts) == 1:
        fields = [name for name in config_fields() if name not in _ONLY_PYTHON]
        return sorted(f"{name}=" for name in {"model", "data", *KINDS, *fields})
    if parts[0] == "data":
        return [f"data.{name}=" for name in SECTION_KEYS]
    if parts[0] == "model":
        return [f"model.{name}" if name.endswith(".") else f"model.{name}=" for name in _IN_MODEL]
    names = [entry.name for entry in catalog.of_kind(parts[0])]
    if len(parts) == 2:
        return [f"{parts[0]}.{name}." for name in names]
    return [f"{parts[0]}.{parts[1]}.{name}=" for name in _options(parts[0], parts[1], catalog)]


def _values(key: str, catalog: Catalog) -> Iterable[str]:
    kind = key.strip()
    if kind in KINDS:
        return sorted({entry.name for entry in catalog.of_kind(kind)} | ({AUTO} if kind in OPEN else set()))
    if kind == "model.dtype":
        return DTYPES
    if names := names_of(kind) if kind in config_fields() else ():
        return names
    wanted = config_fields().get(kind, SECTION_KEYS.get(kind.removeprefix("data.")))
    return ("true", "false") if wanted in (bool, bool | None) else ()


def _options(kind: str, name: str, catalog: Catalog) -> Iterable[str]:
    for entry in catalog.of_kind(kind):
        if entry.name == name:
            try:
                return [one.name.lstrip("_") for one in options(type(by_itself(entry).bound[0].plugin))]
            except SFTCoreError:
                return []
    return []
