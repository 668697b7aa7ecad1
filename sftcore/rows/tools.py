"""Schemas of tools, and calls of them, as chat templates read both."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from sftcore.core.errors import RowError
from sftcore.core.types import Row
from sftcore.rows.columns import from_json, without_nulls
from sftcore.util.shown import shortened

_ARGUMENTS = ("arguments", "parameters", "input")
"""Names for the arguments of a call without the outer mapping: OpenAI's, Llama's and Anthropic's."""


def tools_of(row: Row, column: str) -> list[Mapping[str, Any]] | None:
    """The tool schemas in this column: a list of mappings, or JSON of the list or of each schema; None if empty."""
    value = row.get(column)
    if value is None:
        return None
    # nulls of JSON are meant, those of a column are Arrow's
    if isinstance(value, str):
        value = from_json(value, f'the column "{column}"', fix="Give a JSON list of tool schemas.")
    else:
        value = without_nulls(value)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, (list, tuple)):
        value = [
            from_json(tool, f"{column}[{i}]", fix="Give tool schemas.") if isinstance(tool, str) else tool
            for i, tool in enumerate(value)
        ]
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError(f'the column "{column}" is not a list of tool schemas: {shortened(value)}.')
    return [_schema(tool) for tool in value]


def _schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool as templates read it: under the key `function`, which some data sets leave out."""
    if tool.get("function") is not None or not isinstance(tool.get("name"), str) or "parameters" not in tool:
        return tool
    return {"type": "function", "function": {key: part for key, part in tool.items() if key != "type"}}


def calls_of(value: Any, where: str) -> list[Mapping[str, Any]]:
    """Tool calls: a list of mappings, or JSON of one."""
    is_json = isinstance(value, str)
    value = from_json(value, f"{where}: tool_calls", fix="Give a list of tool calls.") if is_json else value
    if not value:
        return []
    if not isinstance(value, (list, tuple)) or not all(isinstance(call, Mapping) for call in value):
        raise RowError(f"{where}: tool_calls is not a list of tool calls: {shortened(value)}.")
    calls = value if is_json else without_nulls(value)
    return [_call(call, f"{where}: tool_calls[{i}]") for i, call in enumerate(calls)]


def _call(call: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A tool call as templates read it: under the key `function`, with its arguments as a mapping.

    Some data sets leave out the outer mapping, and Arrow often holds the arguments as JSON. A call that does not name a
    function stays as it is.
    """
    clean = {key: value for key, value in call.items() if value is not None}
    if "function" not in clean:
        if not isinstance(clean.get("name"), str):
            return clean
        inner = {"name": clean.pop("name")}
        for key in _ARGUMENTS:
            if key in clean:
                inner["arguments"] = clean.pop(key)
                break
        clean = {"type": "function", **clean, "function": inner}
    function = clean["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(
            f"{where} does not name a function: {shortened(call)}.",
            fix='A call is {"function": {"name": …, "arguments": …}}.',
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str) and not arguments.strip():
        arguments = None
    if isinstance(arguments, str):
        # what is not JSON stays text, because some models are meant to see it unchanged
        with contextlib.suppress(json.JSONDecodeError):
            arguments = json.loads(arguments)
    clean["function"] = {**function, "arguments": {} if arguments is None else arguments}
    return clean
