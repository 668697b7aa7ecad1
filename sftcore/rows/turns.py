"""The turns of a conversation as messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from sftcore.core.errors import RowError
from sftcore.core.types import Message, Part, Row
from sftcore.rows.columns import value_of, without_nulls
from sftcore.rows.roles import KNOWN, role_of
from sftcore.rows.tools import calls_of
from sftcore.util.shown import kind_of, shortened

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names for the reasoning before an answer: DeepSeek's, newer inference servers', and gpt-oss's."""

_SAYS = ("function_call", "refusal", "audio")
"""Keys in which OpenAI's messages say something without content."""

_KEYS = frozenset(("role", "content", "train", "weight", *REASONING, "tool_calls", "tool_call_id", "name"))


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


def _simple_message(turn: Any, roles: Mapping[str, str] | None) -> Message | None:
    """The message of a turn that has only a known role and a text, as most do; None for any other turn."""
    if type(turn) is not dict:
        return None
    role, content = turn.get("role"), turn.get("content")
    if type(content) is not str or type(role) is not str:
        return None
    if roles:
        role = roles.get(role, role)
    if role not in KNOWN or (len(turn) > 2 and sum(value is not None for value in turn.values()) > 2):
        return None
    return Message(role, content)


def _message(turn: Any, where: str, roles: Mapping[str, str], format_name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"{where} is {kind_of(turn)}, not a message.", fix='A message is {"role": …, "content": …}.')
    turn = {key: value for key, value in turn.items() if value is not None}
    role = role_of(turn, where, roles, format_name)
    where = f"{where} ({role})"
    calls = calls_of(turn.get("tool_calls"), where)
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
