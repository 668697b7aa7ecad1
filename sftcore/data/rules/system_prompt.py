"""The system prompt of a run, which conversations get that have none of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import evolve

from sftcore.core.types import Example, Message

ADDED = "the system prompt of the run (system_prompt) is put before the conversation, which has none"
NOT_ADDED = "the system prompt of the run is left out, because the row is not a conversation"

_SYSTEM = ("system", "developer")


def with_system_prompt(example: Example, text: str) -> tuple[Example, str]:
    """The example with the run's system prompt, if it is a conversation without one, and a note on what was done."""
    for name in ("messages", "prompt"):
        turns: Any = getattr(example, name)
        if turns is None:
            continue
        if not isinstance(turns, (list, tuple)):
            break
        others = example.completion if name == "prompt" else ()
        if _has_system(turns) or _has_system(others):
            return example, ""
        changed: dict[str, Any] = {name: [Message("system", text), *turns]}
        return evolve(example, **changed), ADDED
    return example, NOT_ADDED


def _has_system(turns: Sequence[Any] | str | None) -> bool:
    return not isinstance(turns, str) and any(getattr(turn, "role", None) in _SYSTEM for turn in turns or ())
