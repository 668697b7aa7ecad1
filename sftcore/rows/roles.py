"""The roles of a conversation, and what other data call them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sftcore.core.errors import RowError, nearest
from sftcore.util.shown import kind_of, shortened

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles that chat templates know."""

_LIKELY = {
    "tool": ("function", "ipython", "observation", "environment", "tool_response", "function_response"),
    "user": ("human",),
    "assistant": ("gpt", "bot", "model", "chatgpt", "ai"),
}
"""What roles are called in other data."""

KNOWN = frozenset(ROLES)
"""The same, for look-ups."""


def role_of(turn: Mapping[str, Any], where: str, roles: Mapping[str, str], format_name: str) -> str:
    """The turn's role, one of `KNOWN`."""
    role = turn.get("role")
    if role is None:
        raise RowError(f'{where} has no "role".', fix=f"It has: {', '.join(map(str, turn)) or 'nothing'}.")
    if not isinstance(role, str):
        raise RowError(f"{where}: role is {kind_of(role)}, not a text: {shortened(role)}.")
    role = roles.get(role, role)
    if role not in KNOWN:
        raise RowError(
            f'{where}: role "{role}" is not known.{nearest(role, ROLES)}',
            fix=f"Known roles: {', '.join(ROLES)}. {_advice(role, format_name)}",
        )
    return role


def _advice(role: str, format_name: str) -> str:
    name = role.strip().lower()
    likely = name if name in KNOWN else next((one for one, others in _LIKELY.items() if name in others), "ROLE")
    shown = role if role == role.strip() else json.dumps(role)
    mapped = f"Map it with format: {{{format_name}: {{roles: {{{shown}: {likely}}}}}}}"
    return f"{mapped}, where ROLE is one of these." if likely == "ROLE" else f"{mapped}."
