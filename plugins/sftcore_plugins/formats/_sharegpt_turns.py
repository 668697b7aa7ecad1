"""Turns in the shape of ShareGPT into messages: what two formats read alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
from attrs import field, frozen

from sftcore import Message, Row, RowError
from sftcore.rows import read_messages, text_of, value_of

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "function_call",
    "observation": "tool",
    "function_response": "tool",
}


@frozen
class ShareGPTTurns:
    """Where a row has its turns; `function_call` "content" keeps the text of a call as the assistant's words."""

    conversations: str = "conversations"
    system: str = "system"
    roles: Mapping[str, str] = field(factory=dict)
    function_call: str = "tool_calls"

    def messages_of(self, row: Row) -> list[Message]:
        """The conversation, with the row's system prompt before it."""
        turns = value_of(row, self.conversations)
        if isinstance(turns, (list, tuple)):
            turns = [self._turn(turn, i) for i, turn in enumerate(turns)]
        messages = _joined(read_messages(turns, self.conversations, format_name="sharegpt"))
        return [Message("system", text_of(row, self.system)), *messages] if row.get(self.system) else messages

    def _turn(self, turn: Any, index: int) -> Any:
        """The turn with role and content; anything else is left to `read_messages`, which says where it stands."""
        if not isinstance(turn, dict) or (name := turn.get("from")) is None:
            return turn
        role = self.roles.get(name) or _ROLES.get(name, name) if isinstance(name, str) else name
        content = turn.get("value")
        if len(turn) == 2 and role != "function_call":
            return {"role": role, "content": content}
        rest = {key: value for key, value in turn.items() if key not in ("from", "value") and value is not None}
        if role != "function_call":
            return {**rest, "role": role, "content": content}
        if self.function_call == "content":
            return {**rest, "role": "assistant", "content": content}
        return {**rest, "role": "assistant", "content": "", "tool_calls": self._calls(content, index)}

    def _calls(self, value: Any, index: int) -> list[dict[str, Any]]:
        try:
            found = json.loads(value)
            calls = found if isinstance(found, list) else [found]
            return [
                {"name": call["name"], "arguments": call.get("arguments", call.get("parameters"))} for call in calls
            ]
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise RowError(
                f"{self.conversations}[{index}] is not a function_call in JSON with name and arguments: {value!r:.60}.",
                fix="Mend it, or keep the text: format: {sharegpt: {function_call: content}}.",
            ) from None


def _joined(messages: list[Message]) -> list[Message]:
    """Calls in turns of their own belong to the assistant's turn before them, as templates and inference have it."""
    found: list[Message] = []
    for message in messages:
        last = found[-1] if found else None
        calls_alone = message.role == "assistant" and message.tool_calls and not (message.content or message.reasoning)
        if (
            last is not None
            and calls_alone
            and last
            == attrs.evolve(message, content=last.content, reasoning=last.reasoning, tool_calls=last.tool_calls)
        ):
            found[-1] = attrs.evolve(last, tool_calls=[*last.tool_calls, *message.tool_calls])
        else:
            found.append(message)
    return found
