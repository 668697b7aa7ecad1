"""A prompt and what the model should answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from sftcore import Example, Formatter, Message, Row, RowError, hookimpl, plugin
from sftcore.rows import messages_of, template_kwargs_of, text_of, tools_of

_PAIRS = (
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("instruction", "response"),
    ("instruction", "answer"),
    ("input", "output"),
    ("input", "target"),
    ("source", "target"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("context", "response"),
)
"""Column names that data sets commonly use for a prompt and its answer."""


@plugin
class PromptCompletion:
    """Rows with `prompt` and `completion`, as texts or as messages; the loss is on the completion.

    `separator` is put between the two where they are texts.
    """

    prompt: str = "prompt"
    completion: str = "completion"
    separator: str = ""
    tools: str = "tools"
    template_kwargs: str = "chat_template_kwargs"
    roles: dict[str, str] = attrs.field(factory=dict)

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        wanted = {self.prompt, self.completion} <= set(columns)
        return wanted and not {"image", "images", "input_ids"} & set(columns)

    @hookimpl
    def suggest(self, columns: tuple[str, ...]) -> Mapping[str, Any] | None:
        pair = next((pair for pair in _PAIRS if set(pair) <= set(columns)), None)
        return {"prompt": pair[0], "completion": pair[1]} if pair else None

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        def read(row: Row) -> Example:
            texts = [isinstance(row.get(column), str) for column in (self.prompt, self.completion)]
            if all(texts):
                prompt = text_of(row, self.prompt) + self.separator
                return Example(prompt=prompt, completion=text_of(row, self.completion))
            if any(texts) and None not in (row.get(self.prompt), row.get(self.completion)):
                raise RowError(f'"{self.prompt}" and "{self.completion}" are not both texts or both lists of messages.')
            return Example(
                prompt=self._turns(row, self.prompt),
                completion=self._turns(row, self.completion),
                tools=tools_of(row, self.tools),
                template_kwargs=template_kwargs_of(row, self.template_kwargs),
            )

        return read

    def _turns(self, row: Row, column: str) -> list[Message]:
        return messages_of(row, column, self.roles, format_name="prompt-completion")
