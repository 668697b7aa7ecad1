"""Readers that formats share; their errors say which column is wrong and how to fix it.

The functions raise `RowError` without a location, to which the core adds the data set and the row number.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from sftcore.core.errors import RowError, nearest
from sftcore.core.types import Message, Part, Row
from sftcore.util.shown import kind_of, shortened

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles that chat templates know."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names for the reasoning before an answer: DeepSeek's, newer inference servers', and gpt-oss's."""

_LIKELY = {
    "tool": ("function", "ipython", "observation", "environment", "tool_response", "function_response"),
    "user": ("human",),
    "assistant": ("gpt", "bot", "model", "chatgpt", "ai"),
}
"""What roles are called in other data."""

_ARGUMENTS = ("arguments", "parameters", "input")
"""Names for the arguments of a call without the outer mapping: OpenAI's, Llama's and Anthropic's."""

_SAYS = ("function_call", "refusal", "audio")
"""Keys in which OpenAI's messages say something without content."""

_ROLES = frozenset(ROLES)
_KEYS = frozenset(("role", "content", "train", "weight", *REASONING, "tool_calls", "tool_call_id", "name"))


def value_of(row: Row, column: str) -> Any:
    """The row's value in this column; raises if the column is missing or null."""
    value = row.get(column)
    if value is None:
        there = ", ".join(str(key) for key, found in row.items() if found is not None)
        raise RowError(
            f'the column "{column}" is {"null" if column in row else "missing"}.',
            fix=f"The row has: {there or 'nothing'}. Fill it in, drop the row, or map the column in format's options.",
        )
    return value


def text_of(row: Row, column: str) -> str:
    """The row's text in this column."""
    value = value_of(row, column)
    if not isinstance(value, str):
        raise RowError(f'the column "{column}" holds {kind_of(value)}, not a text: {shortened(value)}.')
    return value


def messages_of(
    row: Row, column: str, roles: Mapping[str, str] | None = None, *, format_name: str = "chat"
) -> list[Message]:
    """The row's conversation in this column: a list of mappings with `role` and `content`.

    `roles` maps the data's own role names to those of chat templates. Keys with null, as Arrow adds them, are ignored.
    """
    return read_messages(value_of(row, column), column, roles, format_name=format_name)


def read_messages(
    value: Any, column: str, roles: Mapping[str, str] | None = None, *, format_name: str = "chat"
) -> list[Message]:
    """Like `messages_of`, for a value that the format has already taken from its column."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise RowError(
            f'the column "{column}" is {kind_of(value)}, not a list of messages: {shortened(value)}.',
            fix='Each row needs [{"role": "user", "content": "…"}, …].',
        )
    if not value:
        raise RowError(f'the column "{column}" is an empty list.', fix="Drop the row.")
    return [
        _simple_message(turn, roles) or _message(turn, f"{column}[{i}]", roles or {}, format_name)
        for i, turn in enumerate(value)
    ]


def is_trained_turns(instance: object, attribute: object, value: str) -> None:
    """An attrs validator for the option `trained_turns`: "all", "last" or "first N"."""
    if not re.fullmatch(r"all|last|first [1-9][0-9]*", value):
        raise ValueError(f'trained_turns is "all", "last" or "first N" (such as "first 2"), got "{value}"')


def single_out(messages: list[Message], trained_turns: str) -> list[Message]:
    """The messages with `train` set so that only these assistant turns are trained on: "all", "last", or "first N".

    "all" leaves the data's own `train` and `weight` unchanged; the others set `train` to false on every other turn.
    """
    if trained_turns == "all":
        return messages
    turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
    chosen = set(turns[-1:] if trained_turns == "last" else turns[: int(trained_turns.removeprefix("first "))])
    return [
        attrs.evolve(message, train=i in chosen and message.train is not False) if i in turns else message
        for i, message in enumerate(messages)
    ]


def tools_of(row: Row, column: str) -> list[Mapping[str, Any]] | None:
    """The tool schemas in this column: a list of mappings, or JSON of the list or of each schema; None if empty."""
    value = row.get(column)
    if value is None:
        return None
    # nulls of JSON are meant, those of a column are Arrow's
    if isinstance(value, str):
        value = _from_json(value, f'the column "{column}"', fix="Give a JSON list of tool schemas.")
    else:
        value = without_nulls(value)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, (list, tuple)):
        value = [
            _from_json(tool, f"{column}[{i}]", fix="Give tool schemas.") if isinstance(tool, str) else tool
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


def template_kwargs_of(row: Row, column: str = "chat_template_kwargs") -> dict[str, Any]:
    """The row's own arguments for the chat template: a mapping, or JSON of one."""
    value = row.get(column)
    if value is None:
        return {}
    found = value if isinstance(value, str) else without_nulls(value)
    if isinstance(found, str):
        found = _from_json(found, f'the column "{column}"', fix="Give a mapping, or JSON of one.") or {}
    if not isinstance(found, Mapping):
        raise RowError(f'the column "{column}" holds {kind_of(value)}, not a mapping.')
    return dict(found)


def images_of(row: Row, *columns: str) -> list[Any]:
    """The row's images, from whichever of these columns holds an image or a list of images."""
    found = {name: row[name] for name in columns if row.get(name) is not None and row[name] != []}
    if len(found) > 1:
        raise RowError(f"the row has images in {' and '.join(found)}.", fix="Keep them in one column.")
    values: Any = next(iter(found.values()), [])
    return list(values) if isinstance(values, (list, tuple)) else [values]


def place_images(messages: Sequence[Message], images: Sequence[Any], marker: str) -> tuple[list[Message], list[Any]]:
    """Messages with a part of type "image" for each image, and the images in the order of these parts.

    An image placeholder is the `marker` in a text, or a part of type "image" (or OpenAI's "image_url"), which may also
    hold its own image. Without placeholders, the images are put before the first user's words.

    Raises:
        RowError: the numbers of images and empty placeholders differ, or a part is neither an image nor a text.
    """
    parted = [_parted(message, i, marker) for i, message in enumerate(messages)]
    if images and not any(part.type == "image" for message in parted for part in _parts(message)):
        parted = _with_images_first(parted, len(images))
    held = [_held(part) for message in parted for part in _parts(message) if part.type == "image"]
    empty = sum(one is None for one in held)
    if empty != len(images):
        raise RowError(
            f"the row has {len(images)} image{'s' * (len(images) != 1)}, but its messages have "
            f"{empty} image placeholder{'s' * (empty != 1)}.",
            fix=f'A placeholder is {marker} in a text, or a part {{"type": "image"}}. Give one for each image.',
        )
    left = iter(images)
    return [_without_held(one) for one in parted], [next(left) if one is None else one for one in held]


def without_nulls(value: Any) -> Any:
    """Plain data without the keys that Arrow filled with null, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(part) for part in value]
    return value


def _from_json(text: str, where: str, *, fix: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(f"{where} is not valid JSON: {error}.", fix=fix) from None


def _simple_message(turn: Any, roles: Mapping[str, str] | None) -> Message | None:
    """The message of a turn that has only a known role and a text, as most do; None for any other turn."""
    if type(turn) is not dict:
        return None
    role, content = turn.get("role"), turn.get("content")
    if type(content) is not str or type(role) is not str:
        return None
    if roles:
        role = roles.get(role, role)
    if role not in _ROLES or (len(turn) > 2 and sum(value is not None for value in turn.values()) > 2):
        return None
    return Message(role, content)


def _message(turn: Any, where: str, roles: Mapping[str, str], format_name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"{where} is {kind_of(turn)}, not a message.", fix='A message is {"role": …, "content": …}.')
    turn = {key: value for key, value in turn.items() if value is not None}
    role = _role(turn, where, roles, format_name)
    where = f"{where} ({role})"
    calls = _calls(turn.get("tool_calls"), where)
    content = turn.get("content")
    if content is None and not calls and not any(key in turn for key in _SAYS):
        raise RowError(f'{where} has no "content".', fix="Give it a text, or drop the row.")
    if content is not None and not isinstance(content, (str, list, tuple)):
        raise RowError(f"{where}: content is {kind_of(content)}, not a text: {shortened(content)}.")
    weight = turn.get("weight")
    if weight is not None and not (isinstance(weight, (int, float)) and 0 <= weight <= 1):
        raise RowError(f"{where}: weight must be a number from 0.0 to 1.0, got {weight!r}.")
    train = turn.get("train")
    if train is not None and not isinstance(train, bool):
        raise RowError(f"{where}: train must be true or false, got {train!r}.")
    return Message(
        role=role,
        content=content if content is None or isinstance(content, str) else [_part(part, where) for part in content],
        train=train,
        weight=None if weight is None else float(weight),
        reasoning=_reasoning(turn, where),
        tool_calls=calls,
        tool_call_id=turn.get("tool_call_id"),
        name=turn.get("name"),
        extra={key: without_nulls(value) for key, value in turn.items() if key not in _KEYS},
    )


def _role(turn: Mapping[str, Any], where: str, roles: Mapping[str, str], format_name: str) -> str:
    role = turn.get("role")
    if role is None:
        raise RowError(f'{where} has no "role".', fix=f"It has: {', '.join(map(str, turn)) or 'nothing'}.")
    if not isinstance(role, str):
        raise RowError(f"{where}: role is {kind_of(role)}, not a text: {shortened(role)}.")
    role = roles.get(role, role)
    if role not in _ROLES:
        raise RowError(
            f'{where}: role "{role}" is not known.{nearest(role, ROLES)}',
            fix=f"Known roles: {', '.join(ROLES)}. {_advice(role, format_name)}",
        )
    return role


def _advice(role: str, format_name: str) -> str:
    name = role.strip().lower()
    likely = name if name in _ROLES else next((one for one, others in _LIKELY.items() if name in others), "ROLE")
    shown = role if role == role.strip() else json.dumps(role)
    mapped = f"Map it with format: {{{format_name}: {{roles: {{{shown}: {likely}}}}}}}"
    return f"{mapped}, where ROLE is one of these." if likely == "ROLE" else f"{mapped}."


def _reasoning(turn: Mapping[str, Any], where: str) -> str | None:
    """The reasoning, under any of its names; if there are several, they must agree."""
    found = {name: turn[name] for name in REASONING if name in turn}
    for name, value in found.items():
        if not isinstance(value, str):
            raise RowError(f"{where}: {name} is {kind_of(value)}, not a text: {shortened(value)}.")
    if len(set(found.values())) > 1:
        raise RowError(f"{where}: {' and '.join(found)} differ.", fix="Keep one of them.")
    return next(iter(found.values()), None)


def _part(part: Any, where: str) -> Part:
    if isinstance(part, str):
        return Part("text", part)
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise RowError(f"{where}: a part of the content has no type: {shortened(part)}.")
    clean = without_nulls(part)
    return Part(
        clean["type"], clean.get("text"), {key: got for key, got in clean.items() if key not in ("type", "text")}
    )


def _calls(value: Any, where: str) -> list[Mapping[str, Any]]:
    """Tool calls: a list of mappings, or JSON of one."""
    is_json = isinstance(value, str)
    value = _from_json(value, f"{where}: tool_calls", fix="Give a list of tool calls.") if is_json else value
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


_IMAGE_KEYS = ("image", "image_url", "url", "path", "bytes", "base64")
"""The keys under which a part of type "image" may hold its image."""


def _parts(message: Message) -> Sequence[Part]:
    return message.content if message.content is not None and not isinstance(message.content, str) else ()


def _parted(message: Message, index: int, marker: str) -> Message:
    """The message with its content split into parts if it holds an image."""
    content = message.content
    if isinstance(content, str):
        return attrs.evolve(message, content=_split(content, marker)) if marker in content else message
    parts: list[Part] = []
    for part in _parts(message):
        if part.type == "image_url":
            part = attrs.evolve(part, type="image")
        if part.type not in ("image", "text"):
            raise RowError(f'message {index} has a part of type "{part.type}", but only texts and images can be read.')
        parts += _split(part.text, marker) if part.text is not None and marker in part.text else [part]
    return message if content is None else attrs.evolve(message, content=parts)


def _split(text: str, marker: str) -> list[Part]:
    """A text with an image part in place of each marker.

    >>> [part.text or part.type for part in _split("<image>Who?<image>", "<image>")]
    ['image', 'Who?', 'image']
    """
    pieces = text.split(marker)
    return [
        part
        for i, piece in enumerate(pieces)
        for part in ([Part("image")] if i else []) + ([Part("text", piece)] if piece else [])
    ]


def _with_images_first(messages: Sequence[Message], count: int) -> list[Message]:
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        raise RowError("the row has images, but no user message to put them in.")
    message = messages[first]
    words = [Part("text", message.content)] if isinstance(message.content, str) else list(_parts(message))
    added = [Part("image")] * count
    return [*messages[:first], attrs.evolve(message, content=[*added, *words]), *messages[first + 1 :]]


def _held(part: Part) -> Any:
    """The image that a part itself holds, or None."""
    found = next((part.extra[name] for name in _IMAGE_KEYS if part.extra.get(name) is not None), None)
    return found.get("url") if isinstance(found, Mapping) and set(found) & {"url"} else found


def _without_held(message: Message) -> Message:
    """The message as templates read it, without the images themselves."""
    parts = [attrs.evolve(part, extra={}) if part.type == "image" else part for part in _parts(message)]
    return attrs.evolve(message, content=parts) if parts else message
