"""A question and the calls that answer it, as in Salesforce's xlam-function-calling-60k (arXiv 2406.18518)."""

from __future__ import annotations

import json
from typing import Any

from sftcore import Example, Formatter, Message, Row, RowError, hookimpl, plugin
from sftcore.rows import read_messages, text_of, tools_of, value_of


@plugin
class XLAM:
    """Rows with `query`, `answers` (calls with name and arguments, as a list or JSON of one) and `tools`; the loss is
    on the calls, which the chat template renders.
    """

    query: str = "query"
    answers: str = "answers"
    tools: str = "tools"
    system: str = "system"

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        return {self.query, self.answers, self.tools} <= set(columns) and "input_ids" not in columns

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        return self._read

    def _read(self, row: Row) -> Example:
        system = [Message("system", text_of(row, self.system))] if row.get(self.system) else []
        turn = {"role": "assistant", "content": "", "tool_calls": self._calls(row)}
        return Example(
            prompt=[*system, Message("user", text_of(row, self.query))],
            completion=read_messages([turn], self.answers, format_name="xlam"),
            tools=_described(tools_of(row, self.tools)),
        )

    def _calls(self, row: Row) -> Any:
        value = value_of(row, self.answers)
        try:
            calls = json.loads(value) if isinstance(value, str) else value
        except json.JSONDecodeError as error:
            raise RowError(f'the column "{self.answers}" is not valid JSON: {error}.', fix="Mend it.") from None
        if not isinstance(calls, (list, tuple)) or not calls:
            raise RowError(f'the column "{self.answers}" holds no list of calls: {value!r:.60}.', fix="Drop the row.")
        return calls


def _described(tools: Any) -> Any:
    """Schemas of tools, where xLAM lists parameters without the schema around them."""
    return tools and [
        {**tool, "function": _function(tool["function"])} if "function" in tool else tool for tool in tools
    ]


def _function(function: Any) -> dict[str, Any]:
    parameters = function.get("parameters")
    if not isinstance(parameters, dict) or isinstance(parameters.get("type"), str):
        return dict(function)
    return {**function, "parameters": {"type": "object", "properties": parameters}}
