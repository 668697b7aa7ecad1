"""Conversations in the shape of the OpenAI and Hugging Face chat formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from sftcore import Example, Formatter, Row, hookimpl, plugin
from sftcore.rows import (
    is_trained_turns,
    messages_of,
    single_out,
    split_turns,
    system_column,
    template_kwargs_of,
    tools_column,
    tools_of,
    with_system,
)
from sftcore_plugins.formats._names import answers_in, refuse_unanswered, slips

_NAMES = ("contents", "chat_messages")
"""What columns of messages are called elsewhere, beside the names that the format `dialogue` reads."""


@plugin
class Chat:
    """Rows with `messages`, each a list of turns with role and content; `tools` are honoured per row.

    A row's `system` prompt, if it has one, is put before its messages. `trained_turns` "last" or "first N" trains those
    assistant turns alone, "answers" all of them, whatever the other sources train; "all" leaves it to the messages' own
    `train` (true or false) and `weight` (0.0 to 1.0), and to the run's settings where they have none. `split_turns`
    makes a row of each trained turn of the assistant, with what was said before it.
    """

    messages: str = "messages"
    tools: str = "tools"
    system: str = "system"
    template_kwargs: str = "chat_template_kwargs"
    roles: dict[str, str] = attrs.field(factory=dict)
    trained_turns: str = attrs.field(default="all", validator=is_trained_turns)
    split_turns: bool = False

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        return self.messages in columns and not {"image", "images", "video", "videos", "input_ids"} & set(columns)

    @hookimpl
    def suggest(self, columns: tuple[str, ...]) -> Mapping[str, Any] | None:
        found = [*(name for name in _NAMES if name in columns), *slips(columns, "messages")]
        return {"messages": found[0]} if found else None

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        system, of_tools = system_column(columns, self.system), tools_column(columns, self.tools)
        answers = answers_in(columns)

        def read(row: Row) -> Example | list[Example]:
            messages = messages_of(row, self.messages, self.roles, format_name="chat")
            if answers:
                refuse_unanswered(messages, row, self.messages, answers)
            if system in row:
                messages = with_system(messages, row, system)
            messages = single_out(messages, self.trained_turns)
            tools, kwargs = tools_of(row, of_tools), template_kwargs_of(row, self.template_kwargs)
            if self.split_turns:
                return [Example(messages=turns, tools=tools, template_kwargs=kwargs) for turns in split_turns(messages)]
            return Example(messages=messages, tools=tools, template_kwargs=kwargs)

        return read
