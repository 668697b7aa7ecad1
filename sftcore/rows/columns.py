"""Single columns of a row: values, texts, mappings, and JSON in place of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sftcore.core.errors import RowError
from sftcore.core.types import Row
from sftcore.util.shown import kind_of, shortened


def value_of(row: Row, column: str) -> Any:
    """The row's value in this column; raises if the column is missing or null."""
    value = row.get(column)
    if value is None:
        there = ", ".join(str(key) for key, found in row.items() if found is not None)
        raise RowError(
            f'the column "{column}" is {"null" if column in row else "missing"}.',
            fix=f"The row has: {there or 'nothing'}. Fill it in, drop the row, or map the column in format's options.",
        )
    return value


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
    """Plain data without the keys that Arrow filled with null, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(part) for part in value]
    return value


def from_json(text: str, where: str, *, fix: str) -> Any:
    """What a text holds as JSON; None for a blank one."""
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(f"{where} is not valid JSON: {error}.", fix=fix) from None
