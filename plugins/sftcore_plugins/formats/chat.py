"""Conversations in the shape of the OpenAI and Hugging Face chat formats."""

from __future__ import annotations

import attrs

from sftcore import Example, Formatter, Row, hookimpl, plugin
from sftcore.rows import messages_of, template_kwargs_of, tools_of


@plugin
class Chat:
    """Rows with `messages`, each a list of turns with role and content; `tools` are honoured per row."""

    messages: str = "messages"
    tools: str = "tools"
    template_kwargs: str = "chat_template_kwargs"
    roles: dict[str, str] = attrs.field(factory=dict)

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        return self.messages in columns and not {"image", "images", "input_ids"} & set(columns)

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        def read(row: Row) -> Example:
            return Example(
                messages=messages_of(row, self.messages, self.roles, format_name="chat"),
                tools=tools_of(row, self.tools),
                template_kwargs=template_kwargs_of(row, self.template_kwargs),
            )

        return read
