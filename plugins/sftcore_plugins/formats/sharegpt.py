"""Conversations in the shape of ShareGPT, with the tool roles that LLaMA-Factory added."""

from __future__ import annotations

import json
from typing import Any, Literal

import attrs

from sftcore import Example, Formatter, Message, Row, RowError, hookimpl, plugin
from sftcore.rows import (
    is_trained_turns,
    read_messages,
    single_out,
    template_kwargs_of,
    text_of,
    tools_of,
    value_of,
)

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "function_call",
    "observation": "tool",
    "function_response": "tool",
}


@plugin
class ShareGPT:
    """Rows with `conversations`, each a list of turns with from and value; `tools` may be JSON text.

    `function_call` says what becomes of a turn that calls a tool: "tool_calls" for templates that render them,
    "content" to keep the call's text as the assistant's words. `trained_turns` "last" or "first N" trains those
    assistant turns alone.
    """

    conversations: str = "conversations"
    tools: str = "tools"
    system: str = "system"
    roles: dict[str, str] = attrs.field(factory=dict)
    function_call: Literal["tool_calls", "content"] = "tool_calls"
    trained_turns: str = attrs.field(default="all", validator=is_trained_turns)

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        return self.conversations in columns and not {"image", "images", "input_ids"} & set(columns)

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        return self._read

    def _read(self, row: Row) -> Example:
        messages = single_out(self.messages_of(row), self.trained_turns)
        return Example(messages=messages, tools=tools_of(row, self.tools), template_kwargs=template_kwargs_of(row))

    def messages_of(self, row: Row) -> list[Message]:
        """The conversation, with the row's system prompt before it."""
        turns = value_of(row, self.conversations)
        if isinstance(turns, (list, tuple)):
            turns = [self._turn(turn, i) for i, turn in enumerate(turns)]
        messages = read_messages(turns, self.conversations, format_name="sharegpt")
        return [Message("system", text_of(row, self.system)), *messages] if row.get(self.system) else messages

    def _turn(self, turn: Any, index: int) -> Any:
        """The turn with role and content; what is none is left to `read_messages`, which refuses it with its place."""
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
                f"{self.conversations}[{index}]: this function_call is no JSON with name and arguments: {value!r:.60}.",
                fix="Mend it, or keep the text: format: {sharegpt: {function_call: content}}.",
            ) from None
