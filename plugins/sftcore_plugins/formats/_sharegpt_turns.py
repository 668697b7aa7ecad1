"""Turns in the shape of ShareGPT into messages: what two formats read alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import field, frozen

from sftcore import Message, Row
from sftcore.rows import ALIASES, as_turns, read_messages, value_of, with_system


@frozen
class ShareGPTTurns:
    """Where a row has its turns; `function_call` "content" keeps the text of a call as the assistant's words."""

    conversations: str = "conversations"
    system: str = "system"
    roles: Mapping[str, str] = field(factory=dict)
    function_call: Literal["tool_calls", "content"] = "tool_calls"

    def messages_of(self, row: Row) -> list[Message]:
        """The conversation, with the row's system prompt before it."""
        turns = value_of(row, self.conversations)
        if type(turns) is not list or not turns or type(turns[0]) is not dict or "from" not in turns[0]:
            turns = as_turns(turns, self.conversations)
        if isinstance(turns, (list, tuple)):
            turns = [self._turn(turn) for turn in turns]
        messages = read_messages(
            turns,
            self.conversations,
            self.roles,
            format_name="sharegpt",
            calls=self.function_call,
            kept_by="function_call: content",
        )
        return with_system(messages, row, self.system)

    def _turn(self, turn: Any) -> Any:
        """A plain turn with role and content; anything else is left to `read_messages`, as are names of the user's."""
        if type(turn) is not dict or len(turn) != 2 or self.roles:
            return turn
        name, content = turn.get("from"), turn.get("value")
        if type(name) is not str or content is None:
            return turn
        return {"role": ALIASES.get(name, name), "content": content}
