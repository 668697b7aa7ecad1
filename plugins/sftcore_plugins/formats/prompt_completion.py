"""A prompt and what the model should answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from sftcore import Example, Formatter, Message, Row, RowError, hookimpl, plugin
from sftcore.rows import read_messages, template_kwargs_of, text_of, tools_of, value_of

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
            prompt, completion = value_of(row, self.prompt), value_of(row, self.completion)
            if isinstance(prompt, str) and isinstance(completion, str):
                return Example(prompt=prompt + self.separator, completion=completion)
            if isinstance(prompt, str) or isinstance(completion, str):
                self._refuse_mixture(row)
            return Example(
                prompt=self._turns(prompt, self.prompt),
                completion=self._turns(completion, self.completion),
                tools=tools_of(row, self.tools),
                template_kwargs=template_kwargs_of(row, self.template_kwargs),
            )

        return read

    def _refuse_mixture(self, row: Row) -> None:
        """One of the two is a text: which turn of a conversation it would be cannot be known."""
        text, other, role = self.prompt, self.completion, "user"
        if not isinstance(row[text], str):
            text, other, role = other, text, "assistant"
        if not isinstance(row[other], (list, tuple)):
            text_of(row, other)  # refuses what is neither
        raise RowError(
            f'"{self.prompt}" and "{self.completion}" are not both texts or both lists of messages.',
            fix=f'Make "{text}" a list: [{{"role": "{role}", "content": …}}], or "{other}" a text.',
        )

    def _turns(self, turns: Any, column: str) -> list[Message]:
        return read_messages(turns, column, self.roles, format_name="prompt-completion")
