"""The roles of a conversation, and what other data call them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sftcore.core.errors import RowError
from sftcore.util.shown import kind_of, shortened

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles that chat templates know."""

KNOWN = frozenset(ROLES)
"""The same, for look-ups."""

CALL = "function_call"
"""What a turn is that calls a tool and says nothing else; it becomes one of the assistant."""

ALIASES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "ai", "model", "bot", "chatbot", "bing", "bard"), "assistant"),
    **dict.fromkeys(
        (
            "function", "ipython", "environment", "observation", "tool_response", "tool_result", "function_response",
            "function_result",
        ),
        "tool",
    ),
    **dict.fromkeys(("function_call", "function_calls", "tool_call", "tool_calls"), CALL),
}  # fmt: skip
"""What roles are called in other data: those of ShareGPT, LLaMA-Factory, ms-swift, OASST, OLMo, Llama and Gemini."""

_SPEAKERS = ("role", "from", "speaker", "author", "sender")
"""The keys under which a turn says who speaks."""


def speaker_of(turn: Mapping[str, Any]) -> str:
    """The key under which the turn says who speaks; "role" where it does not."""
    return next((key for key in _SPEAKERS if turn.get(key) is not None), "role")


def spelled(name: str) -> str:
    """A role's name as it is known: in small letters, with what separates its words as `_` and no marks around it.

    >>> spelled(" Tool-Response:"), spelled("<|user|>")
    ('tool_response', 'user')
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def is_role(name: Any) -> bool:
    """Whether it is the name of a role, or one of its aliases."""
    return isinstance(name, str) and (spelled(name) in KNOWN or spelled(name) in ALIASES)


def role_of(turn: Mapping[str, Any], where: str, roles: Mapping[str, str], format_name: str) -> str:
    """The turn's role: one of `KNOWN`, or CALL.

    Names are read in any case and without blanks or marks around them; `roles`, the user's own, come first.
    """
    role = turn.get(speaker_of(turn))
    if role is None:
        raise RowError(f'{where} has no "role".', fix=f"It has: {', '.join(map(str, turn)) or 'nothing'}.")
    if isinstance(role, Mapping) and isinstance(role.get("role"), str):
        role = role["role"]  # exported conversations of ChatGPT
    if not isinstance(role, str):
        raise RowError(f"{where}: role is {kind_of(role)}, not a text: {shortened(role)}.")
    named = str(roles.get(role, role)).strip()
    found = spelled(named)
    found = ALIASES.get(found, found)
    if found not in KNOWN and found != CALL:
        shown = json.dumps(role, ensure_ascii=False) if role != role.strip() or not role else role
        raise RowError(
            f'{where}: role "{named}" is not known.',
            fix=f"Known roles: {', '.join(ROLES)}. Map it with "
            f"format: {{{format_name}: {{roles: {{{shown}: ROLE}}}}}}, where ROLE is one of these.",
        )
    return found
