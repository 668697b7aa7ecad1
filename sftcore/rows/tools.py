"""Schemas of tools, and calls of them, as chat templates read both."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from sftcore.core.errors import RowError
from sftcore.core.types import Row
from sftcore.rows.columns import Meant, from_json, without_arrays, without_nulls
from sftcore.util.shown import shortened

_ARGUMENTS = ("arguments", "parameters", "input", "args")
"""Names for the arguments of a call without the outer mapping: OpenAI's, Llama's, Anthropic's and Gemini's."""

_PARAMETERS = ("parameters", "input_schema", "inputSchema")
"""Names for the parameters of a tool: OpenAI's, Anthropic's and Bedrock's."""

_DECLARATIONS = ("functionDeclarations", "function_declarations")
"""Names for the list that Gemini puts its tools into."""

_NAMING = frozenset(("name", "function", "type", "toolSpec", *_DECLARATIONS))
"""The keys of which a schema has one; a mapping without them maps the names of tools to their schemas."""

_CALL = 'A call is {"function": {"name": …, "arguments": …}}.'

_COLUMNS = ("functions", "tool_defs", "available_tools")
"""What columns of schemas are called elsewhere."""


def tools_column(columns: Collection[str], named: str) -> str:
    """The column of schemas: the one that the options name, or if it is not there, one that is called so."""
    return next((name for name in (named, *_COLUMNS) if name in columns), named)


def tools_of(row: Row, column: str) -> list[Mapping[str, Any]] | None:
    """The tool schemas in this column: a list of mappings, or JSON of the list or of each schema; None if empty."""
    value = row.get(column)
    if value is None:
        return None
    if hasattr(value, "tolist"):
        value = without_arrays(value)
    # nulls of JSON are meant, those of a column are Arrow's
    if isinstance(value, str):
        value = from_json(value, f'the column "{column}"', fix="Give a JSON list of tool schemas.")
    else:
        value = without_nulls(value)
    if isinstance(value, Mapping):
        value = [value] if value.keys() & _NAMING else [{"name": name, **_of(tool)} for name, tool in value.items()]
    if isinstance(value, (list, tuple)):
        value = [
            from_json(tool, f"{column}[{i}]", fix="Give tool schemas.") if isinstance(tool, str) else tool
            for i, tool in enumerate(value)
            if tool is not None
        ]
    if value is None or value == [] or value != value:  # a number that is none is what pandas fills in
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError(f'the column "{column}" is not a list of tool schemas: {shortened(value)}.')
    return [schema for tool in value for schema in _schemas(tool)] or None


def _of(tool: Any) -> Mapping[str, Any]:
    return tool if isinstance(tool, Mapping) else {"parameters": tool}


def _schemas(tool: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A tool as templates read it: under the key `function`, which some data sets leave out."""
    for key in _DECLARATIONS:
        if isinstance(tool.get(key), (list, tuple)):
            return [schema for one in tool[key] if isinstance(one, Mapping) for schema in _schemas(one)]
    if isinstance(spec := tool.get("toolSpec"), Mapping):
        tool = spec
    named = next((key for key in _PARAMETERS if tool.get(key) is not None), None)
    if tool.get("function") is not None or not isinstance(tool.get("name"), str):
        return [tool]
    if named is None and tool.get("type") not in (None, "function"):
        return [tool]  # a tool that the provider runs itself
    inner = {"parameters" if key == named else key: part for key, part in tool.items() if key != "type"}
    parameters = inner.get("parameters")
    if isinstance(parameters, Mapping) and set(parameters) == {"json"}:
        inner["parameters"] = parameters["json"]
    return [{"type": "function", "function": inner}]


def calls_of(value: Any, where: str) -> list[Mapping[str, Any]]:
    """Tool calls: a list of mappings, one mapping, or JSON of either."""
    value = from_json(value, f"{where}: tool_calls", fix="Give a list of tool calls.") if type(value) is str else value
    if not value:
        return []
    calls = [value] if isinstance(value, Mapping) else value
    found = []
    for i, call in enumerate(calls if isinstance(calls, (list, tuple)) else [None]):
        named = f"{where}: tool_calls[{i}]"
        if isinstance(call, str) and call.lstrip().startswith("{"):
            call = from_json(call, named, fix="Give tool calls.")
        if not isinstance(call, Mapping):
            raise RowError(f"{where}: tool_calls is not a list of tool calls: {shortened(value)}.")
        found.append(_call(without_nulls(call), named))
    return found


def _call(call: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A tool call as templates read it: under the key `function`, with its arguments as a mapping.

    Some data sets leave out the outer mapping, and Arrow often holds the arguments as JSON. A call that does not name a
    function stays as it is.
    """
    clean = {key: value for key, value in call.items() if value is not None}
    if "function" not in clean:
        if not isinstance(clean.get("name"), str):
            if any(key in clean for key in _ARGUMENTS):
                raise RowError(f"{where} does not name a function: {shortened(call)}.", fix=_CALL)
            return clean
        inner = {"name": clean.pop("name")}
        for key in _ARGUMENTS:
            if key in clean:
                inner["arguments"] = clean.pop(key)
                break
        clean = {"type": "function", **clean, "function": inner}
    function = clean["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f"{where} does not name a function: {shortened(call)}.", fix=_CALL)
    clean["function"] = {**function, "arguments": arguments_of(function.get("arguments"), where)}
    return clean


def arguments_of(value: Any, where: str) -> Mapping[str, Any]:
    """The arguments of a call as a mapping: given as one, or as JSON of one, once or twice; none if they are empty.

    Raises:
        RowError: they are anything else, which no tool can be called with, or JSON with one key twice.
    """
    found = value
    for _ in range(2):
        if isinstance(found, str):
            found = _object(found, where) if found.strip() else None
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise RowError(
            f"{where}: the arguments are not a JSON object: {shortened(value)}.",
            fix='Give {"name": value, …}, and {} for none.',
        )
    return found


def _object(text: str, where: str) -> Any:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in found]
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise RowError(f'{where}: the arguments name "{twice}" twice: {shortened(text)}.', fix="Keep one of them.")
        return Meant(found) if any(value is None for _, value in found) else dict(found)

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no value of JSON")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=refuse)
    except RowError:
        raise
    except (ValueError, RecursionError):
        raise RowError(
            f"{where}: the arguments are not a JSON object: {shortened(text)}.",
            fix='Give {"name": value, …}, and {} for none.',
        ) from None
