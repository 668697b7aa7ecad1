"""Tells nulls that somebody wrote from those that Arrow filled in: a column of JSON holds no key that nobody wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from attrs import frozen

from sftcore.rows.columns import as_meant

Where: TypeAlias = "bool | list[Any] | dict[str, Any]"
"""Where a feature holds JSON: True, or the same for the elements of a list or the keys of a struct; False: nowhere."""


@frozen
class MeantNulls:
    """Marks mappings that were JSON in the rows of one data set; what it marks is kept by `without_nulls`."""

    columns: Mapping[str, Where]

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with its mappings of JSON marked; the row itself stays as it is."""
        marked = {name: _marked(row[name], where) for name, where in self.columns.items() if name in row}
        return {**row, **marked}


def meant_nulls(features: Mapping[str, Any] | None) -> Callable[[Mapping[str, Any]], dict[str, Any]] | None:
    """What marks the nulls that are meant in rows with these features; None where no column holds JSON."""
    columns = {name: where for name, one in (features or {}).items() if (where := _where(one))}
    return MeantNulls(columns) if columns else None


def _where(feature: Any) -> Where:
    if getattr(feature, "_type", None) == "Json":  # not to import `datasets` for rows that need no JSON
        return True
    if isinstance(feature, Mapping):
        return {key: where for key, part in feature.items() if (where := _where(part))}
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    found = False if inner is None else _where(inner)
    return [found] if found else False


def _marked(value: Any, where: Where) -> Any:
    if where is True:
        return as_meant(value)
    if isinstance(where, list) and isinstance(value, (list, tuple)):
        return [_marked(one, where[0]) for one in value]
    if isinstance(where, dict) and isinstance(value, Mapping):
        return {**value, **{key: _marked(value[key], part) for key, part in where.items() if key in value}}
    return value
