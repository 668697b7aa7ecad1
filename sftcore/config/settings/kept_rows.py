"""Which rows a run keeps: `rows: {where: {column: value}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sftcore.core.errors import RecipeError

_FIX = "Write rows: {where: {label: true}}, with a value, or a list of values, for each column."


def kept_rows(settings: Mapping[str, Any], *, where: str = "") -> Mapping[str, Any]:
    """The wanted values by column; empty where all rows are kept.

    Raises:
        RecipeError: the setting has another shape.
    """
    given = settings.get("rows")
    if given is None:
        return {}
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        found = None
    wanted = found.get("where") if isinstance(found, Mapping) and set(found) == {"where"} else None
    if not isinstance(wanted, Mapping) or any(isinstance(value, Mapping) for value in wanted.values()):
        raise RecipeError(f"rows says which rows are kept, got {given!r:.60}.", where=where or "rows", fix=_FIX)
    return {str(column): value for column, value in wanted.items()}
