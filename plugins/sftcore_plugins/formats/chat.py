"""Conversations in the shape of the OpenAI and Hugging Face chat formats."""

from __future__ import annotations

import attrs

from sftcore import Example, Formatter, Row, hookimpl, plugin
from sftcore.rows import is_trained_turns, messages_of, single_out, template_kwargs_of, tools_of


@plugin
class Chat:
    """Rows with `messages`, each a list of turns with role and content; `tools` are honoured per row.

    `trained_turns` "last" or "first N" trains those assistant turns alone; "all" leaves it to the messages' own `train`
    (true or false) and `weight` (0.0 to 1.0), and to the run's settings where they have none.
    """

    messages: str = "messages"
    tools: str = "tools"
    template_kwargs: str = "chat_template_kwargs"
    roles: dict[str, str] = attrs.field(factory=dict)
    trained_turns: str = attrs.field(default="all", validator=is_trained_turns)

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        return self.messages in columns and not {"image", "images", "input_ids"} & set(columns)

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        def read(row: Row) -> Example:
            return Example(
                messages=single_out(
                    messages_of(row, self.messages, self.roles, format_name="chat"), self.trained_turns
                ),
                tools=tools_of(row, self.tools),
                template_kwargs=template_kwargs_of(row, self.template_kwargs),
            )

        return read
