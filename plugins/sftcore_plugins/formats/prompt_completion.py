"""A prompt and what the model should answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from sftcore import Example, Formatter, Message, Row, hookimpl, plugin
from sftcore.rows import (
    read_messages,
    system_column,
    template_kwargs_of,
    text_of,
    tools_column,
    tools_of,
    value_of,
    with_system,
)
from sftcore_plugins.formats._names import CONTEXTS, HISTORIES, REASONINGS, SYSTEMS, column_in, pair_in


@plugin
class PromptCompletion:
    """Rows with `prompt` and `completion`, as texts or as messages; the loss is on the completion.

    `separator` is put between the two where they are texts. A text beside messages is the user's or the assistant's. A
    row's `system` prompt is put before its messages; texts have no place for one.
    """

    prompt: str = "prompt"
    completion: str = "completion"
    separator: str = ""
    system: str = "system"
    tools: str = "tools"
    template_kwargs: str = "chat_template_kwargs"
    roles: dict[str, str] = attrs.field(factory=dict)

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        wanted = {self.prompt, self.completion} <= set(columns)
        return wanted and not {"image", "images", "video", "videos", "input_ids"} & set(columns)

    @hookimpl
    def suggest(self, columns: tuple[str, ...]) -> Mapping[str, Any] | None:
        pair = pair_in(columns)
        if pair is None or column_in(columns, (*CONTEXTS, *SYSTEMS, *HISTORIES, *REASONINGS), *pair):
            return None  # joined texts would leave the other columns out
        return {"prompt": pair[0], "completion": pair[1]}

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        system, of_tools = system_column(columns, self.system), tools_column(columns, self.tools)

        def read(row: Row) -> Example:
            prompt, completion = value_of(row, self.prompt), value_of(row, self.completion)
            if isinstance(prompt, str) and isinstance(completion, str):
                return Example(prompt=prompt + self.separator, completion=completion)
            asked = self._turns(prompt, self.prompt, "user", row)
            return Example(
                prompt=with_system(asked, row, system) if system in row else asked,
                completion=self._turns(completion, self.completion, "assistant", row),
                tools=tools_of(row, of_tools),
                template_kwargs=template_kwargs_of(row, self.template_kwargs),
            )

        return read

    def _turns(self, turns: Any, column: str, role: str, row: Row) -> list[Message]:
        if type(turns) is not list:
            if isinstance(turns, str):  # beside messages, a text is one of them
                return [Message(role, turns)]
            turns = [turns] if isinstance(turns, Mapping) and "role" in turns else turns
            if not isinstance(turns, (list, tuple)):
                text_of(row, column)  # refuses what is neither
        return read_messages(turns, column, self.roles, format_name="prompt-completion")
