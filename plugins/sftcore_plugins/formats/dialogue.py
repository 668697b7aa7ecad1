"""Conversations that are no list of messages: pairs, texts in turn, and transcripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from sftcore import Example, Formatter, Row, hookimpl, plugin
from sftcore.rows import (
    is_trained_turns,
    single_out,
    system_column,
    template_kwargs_of,
    text_of,
    tools_column,
    tools_of,
    with_system,
)
from sftcore_plugins.formats._sharegpt_turns import ShareGPTTurns

_CLEAR = ("conversation", "dialog", "dialogue", "turns")
_VAGUE = ("items", "data", "chat", "utterances", "thread")
_OTHERS = {
    "input_ids", "messages", "conversations", "text", "prompt", "completion", "instruction", "output",
    "chosen", "rejected", "image", "images", "video", "videos",
}  # fmt: skip


@plugin
class Dialogue:
    """Rows with a conversation as pairs of a question and its answer, as texts in turn (the user's first), as a
    transcript with `USER:` and `ASSISTANT:`, or as messages under another name.

    `turns` names its column, by default the first of conversation, dialog, dialogue and turns, and where no other
    format could be meant, of items, data, chat, utterances and thread. `system` goes in front. `trained_turns`
    "answers" (all), "last" or "first N" trains those assistant turns alone.
    """

    turns: str | None = None
    system: str = "system"
    tools: str = "tools"
    template_kwargs: str = "chat_template_kwargs"
    roles: dict[str, str] = attrs.field(factory=dict)
    trained_turns: str = attrs.field(default="all", validator=is_trained_turns)

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        return not _OTHERS & set(columns) and self._column(columns) in columns

    @hookimpl
    def suggest(self, columns: tuple[str, ...]) -> Mapping[str, Any] | None:
        found = next((name for name in columns if name.lower() in (*_CLEAR, *_VAGUE)), None)
        return None if found is None or {"chosen", "rejected"} & set(columns) else {"turns": found}

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        reader = ShareGPTTurns(self._column(columns), "", self.roles)
        system, of_tools = system_column(columns, self.system), tools_column(columns, self.tools)

        def read(row: Row) -> Example:
            messages = reader.messages_of(row)
            if row.get(system):
                words = text_of(row, system).removeprefix("SYSTEM:").strip()  # as Glaive has it
                messages = with_system(messages, {system: words}, system)
            return Example(
                messages=single_out(messages, self.trained_turns),
                tools=tools_of(row, of_tools),
                template_kwargs=template_kwargs_of(row, self.template_kwargs),
            )

        return read

    def _column(self, columns: tuple[str, ...]) -> str:
        return self.turns or next((name for name in (*_CLEAR, *_VAGUE) if name in columns), _CLEAR[0])
