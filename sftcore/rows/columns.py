"""Single columns of a row: values, texts, mappings, and JSON in place of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sftcore.core.errors import RowError
from sftcore.core.types import Row
from sftcore.util.shown import kind_of, shortened


class Meant(dict[str, Any]):
    """A mapping whose nulls were written by somebody: it was JSON, and no key is Arrow's filling."""


def value_of(row: Row, column: str) -> Any:
    """The row's value in this column; raises if the column is missing or null."""
    value = row.get(column)
    if is_null(value):
        there = ", ".join(str(key) for key, found in row.items() if not is_null(found))
        raise RowError(
            f'the column "{column}" is {"null" if column in row else "missing"}.',
            fix=f"The row has: {there or 'nothing'}. Fill it in, drop the row, or map the column in format's options.",
        )
    return value


def is_null(value: Any) -> bool:
    """Whether there is nothing: null, or the number that is none, which pandas fills in."""
    return value is None or (isinstance(value, float) and value != value)


def text_of(row: Row, column: str) -> str:
    """The row's text in this column."""
    value = value_of(row, column)
    if not isinstance(value, str):
        raise RowError(f'the column "{column}" holds {kind_of(value)}, not a text: {shortened(value)}.')
    return value


def template_kwargs_of(row: Row, column: str = "chat_template_kwargs") -> dict[str, Any]:
    """The row's own arguments for the chat template: a mapping, or JSON of one."""
    value = row.get(column)
    if value is None:
        return {}
    found = value if isinstance(value, str) else without_nulls(value)
    if isinstance(found, str):
        found = from_json(found, f'the column "{column}"', fix="Give a mapping, or JSON of one.") or {}
    if not isinstance(found, Mapping):
        raise RowError(f'the column "{column}" holds {kind_of(value)}, not a mapping.')
    return dict(found)


def without_nulls(value: Any) -> Any:
    """Plain data without the keys that Arrow filled with null, at any depth; those that were meant stay."""
    if isinstance(value, Meant):
        return value
    if isinstance(value, Mapping):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(part) for part in value]
    return value


def as_meant(value: Any) -> Any:
    """The value with its mappings marked as `Meant` where they hold a null, at any depth."""
    if type(value) is dict:
        found = {key: as_meant(part) if type(part) in (dict, list) else part for key, part in value.items()}
        return Meant(found) if None in found.values() else found
    if type(value) is list:
        return [as_meant(part) for part in value]
    return value


def without_arrays(value: Any) -> Any:
    """Plain data in place of NumPy's lists and scalars, at any depth; a number that is none, as pandas fills in, is a
    null. What has more dimensions, such as a picture, stays."""
    if isinstance(value, Mapping):
        found = {key: without_arrays(part) for key, part in value.items()}
        return Meant(found) if isinstance(value, Meant) else found
    if isinstance(value, (list, tuple)):
        return [without_arrays(part) for part in value]
    if not isinstance(value, str) and hasattr(value, "tolist") and getattr(value, "ndim", 0) < 2:
        return without_arrays(value.tolist())
    return None if is_null(value) else value


def from_json(text: str, where: str, *, fix: str) -> Any:
    """What a text holds as JSON, whose nulls are meant; None for a blank one."""
    if not text.strip():
        return None
    try:
        return as_meant(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where} is not valid JSON: {error}.", fix=fix) from None
