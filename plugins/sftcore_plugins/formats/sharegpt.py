"""Conversations in the shape of ShareGPT, with the tool roles that LLaMA-Factory added."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs

from sftcore import Example, Formatter, Row, hookimpl, plugin
from sftcore.rows import (
    is_trained_turns,
    single_out,
    split_turns,
    system_column,
    template_kwargs_of,
    tools_column,
    tools_of,
)
from sftcore_plugins.formats._names import answers_in, refuse_unanswered
from sftcore_plugins.formats._sharegpt_turns import ShareGPTTurns


@plugin
class ShareGPT:
    """Rows with `conversations`, each a list of turns with from and value; `tools` may be JSON text.

    `function_call` says what becomes of a turn that calls a tool: "tool_calls" for templates that render them,
    "content" to keep the call's text as the assistant's words. `trained_turns` "last" or "first N" trains those
    assistant turns alone, "answers" all of them. `split_turns` makes a row of each trained turn of the assistant.
    """

    conversations: str = "conversations"
    tools: str = "tools"
    system: str = "system"
    roles: dict[str, str] = attrs.field(factory=dict)
    function_call: Literal["tool_calls", "content"] = "tool_calls"
    calls_as_text: ClassVar[str] = "function_call: content"
    trained_turns: str = attrs.field(default="all", validator=is_trained_turns)
    split_turns: bool = False

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        return self.conversations in columns and not {"image", "images", "video", "videos", "input_ids"} & set(columns)

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        system, of_tools = system_column(columns, self.system), tools_column(columns, self.tools)
        answers = answers_in(columns)
        turns = ShareGPTTurns(self.conversations, system, self.roles, self.function_call)

        def read(row: Row) -> Example | list[Example]:
            messages = single_out(turns.messages_of(row), self.trained_turns)
            if answers:
                refuse_unanswered(messages, row, self.conversations, answers)
            tools, kwargs = tools_of(row, of_tools), template_kwargs_of(row)
            if self.split_turns:
                return [Example(messages=part, tools=tools, template_kwargs=kwargs) for part in split_turns(messages)]
            return Example(messages=messages, tools=tools, template_kwargs=kwargs)

        return read
