"""The turns of a conversation as messages."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import attrs
from attrs import frozen

from sftcore.core.errors import RowError
from sftcore.core.types import Message, Row
from sftcore.rows.columns import Meant, from_json, value_of, without_arrays, without_nulls
from sftcore.rows.marks import as_marked
from sftcore.rows.parts import content_of, text_of_parts
from sftcore.rows.roles import CALL, KNOWN, is_role, role_of, speaker_of
from sftcore.rows.tools import calls_of
from sftcore.util.shown import kind_of, shortened

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names for the reasoning before an answer: DeepSeek's, newer inference servers', and gpt-oss's."""

_SAYS = ("function_call", "function_calls", "tool_call", "refusal", "audio")
"""Keys in which OpenAI's, OLMo's and ms-swift's messages say something without content."""

_CONTENT = ("content", "value", "parts", "text", "message", "segments")
"""Names for what a turn says: OpenAI's, ShareGPT's, Gemini's, those of transcripts, and Axolotl's."""

_KEYS = frozenset(("role", "content", "train", "weight", *REASONING, "tool_calls", "tool_call_id", "name"))

_SYSTEMS = ("system", "system_prompt", "system_message", "systemInstruction", "system_instruction")
"""What columns of system prompts are called."""

_SHAPE = 'Each row needs [{"role": "user", "content": "…"}, …].'


def messages_of(
    row: Row, column: str, roles: Mapping[str, str] | None = None, *, format_name: str = "chat"
) -> list[Message]:
    """The row's conversation in this column: a list of mappings with `role` and `content`, or JSON of one.

    `roles` maps the data's own role names to those of chat templates; common ones are known. Keys with null, as Arrow
    adds them, are ignored.
    """
    return read_messages(value_of(row, column), column, roles, format_name=format_name)


def read_messages(
    value: Any,
    column: str,
    roles: Mapping[str, str] | None = None,
    *,
    format_name: str = "chat",
    calls: Literal["tool_calls", "content"] = "tool_calls",
    kept_by: str = "",
) -> list[Message]:
    """Like `messages_of`, for a value that the format has already taken from its column.

    `calls` says what becomes of turns that call a tool and say nothing else, such as ShareGPT's `function_call`:
    "content" keeps their text as the assistant's words. `kept_by` is the format's option that does so, if it has one.
    """
    if type(value) is not list:
        value = _as_list(value, column)
    if not value:
        raise RowError(f'the column "{column}" is an empty list.', fix="Drop the row.")
    simple = [message for turn in value if (message := _simple_message(turn, roles)) is not None]
    if len(simple) == len(value):
        return simple
    asked = _Asked(roles or {}, format_name, calls, kept_by)
    return with_calls_joined([_message(turn, f"{column}[{i}]", asked) for i, turn in enumerate(value)])


@frozen
class _Asked:
    """What the options of a format say of turns."""

    roles: Mapping[str, str]
    format_name: str
    calls: str
    kept_by: str


def _as_list(value: Any, column: str) -> Sequence[Any]:
    """The turns of a conversation that is not a plain list: JSON, an array, or a mapping of lists."""
    found = value
    if isinstance(found, str):
        text, found = found, None
        if text.lstrip()[:1] in ("[", "{"):
            found = from_json(text, f'the column "{column}"', fix="Write it with json.dumps.")
        value = text
    elif hasattr(found, "tolist"):
        found = without_arrays(found)
    lists = list(found.values()) if isinstance(found, Mapping) else []
    if lists and all(isinstance(one, (list, tuple)) for one in lists) and len({len(one) for one in lists}) == 1:
        # what `datasets` makes of a Sequence of mappings
        return [dict(zip(found, parts, strict=True)) for parts in zip(*lists, strict=True)]
    if not isinstance(found, Sequence) or isinstance(found, (str, bytes)):
        raise RowError(
            f'the column "{column}" is {kind_of(value)}, not a list of messages: {shortened(value)}.', fix=_SHAPE
        )
    return found


def with_calls_joined(messages: list[Message]) -> list[Message]:
    """Calls and reasoning in turns of their own as one message of the assistant, as templates and inference have it.

    Calls go to the assistant's turn before them, reasoning to the turn behind it, unless what they say of training
    differs.
    """
    found: list[Message] = []
    for message in messages:
        last = found[-1] if found else None
        if last is None or last.role != "assistant" or message.role != "assistant":
            found.append(message)
            continue
        same = last == attrs.evolve(message, content=last.content, reasoning=last.reasoning, tool_calls=last.tool_calls)
        if same and message.tool_calls and not (message.content or message.reasoning):
            found[-1] = attrs.evolve(last, tool_calls=[*last.tool_calls, *message.tool_calls])
        elif same and last.reasoning and message.reasoning is None and not (last.content or last.tool_calls):
            found[-1] = attrs.evolve(message, reasoning=last.reasoning)
        else:
            found.append(message)
    return found


def system_column(columns: Collection[str], named: str) -> str:
    """The column of system prompts: the one that the options name, or if it is not there, one that is called so."""
    return next((name for name in (named, *_SYSTEMS) if name in columns), named) if named else ""


def with_system(messages: list[Message], row: Row, column: str) -> list[Message]:
    """The messages with the row's system prompt before them, if it has one in this column.

    Raises:
        RowError: it is not a text, or the messages begin with another system prompt.
    """
    value = _plain(row.get(column))
    if not value:
        return messages
    text = text_of_parts(value)
    if text is None:
        raise RowError(f'the column "{column}" holds {kind_of(value)}, not a text: {shortened(value)}.')
    if not text:
        return messages
    own = messages[0]
    if own.role not in ("system", "developer"):
        return [Message("system", text), *messages]
    if not own.content:
        return [Message("system", text), *messages[1:]]
    parts = own.content if isinstance(own.content, str) else "".join(part.text or "" for part in own.content)
    if parts.strip() != text.strip():
        raise RowError(
            f'the column "{column}" and the first message hold two system prompts that differ.',
            fix=f'Keep one of them; the option system: "" leaves the column "{column}" unread.',
        )
    return messages


def split_turns(messages: list[Message]) -> list[list[Message]]:
    """One conversation for each turn of the assistant that is trained, which ends with it and trains it alone.

    Each is as a model sees it when it answers: a template that cuts out the reasoning of earlier turns cuts it there
    too, and keeps that of the last.
    """
    found = []
    for i, message in enumerate(messages):
        if message.role == "assistant" and message.train is not False and message.weight != 0:
            before = [
                attrs.evolve(one, train=False, weight=None) if one.role == "assistant" else one for one in messages[:i]
            ]
            found.append([*before, attrs.evolve(message, train=True)])
    return found


def is_trained_turns(instance: object, attribute: object, value: str) -> None:
    """An attrs validator for the option `trained_turns`: "all", "answers", "last" or "first N"."""
    if not re.fullmatch(r"all|answers|last|first [1-9][0-9]*", value):
        raise ValueError(f'trained_turns is "all", "answers", "last" or "first N" (such as "first 2"), got "{value}"')


def single_out(messages: list[Message], trained_turns: str) -> list[Message]:
    """The messages with `train` set so that only these assistant turns are trained on: "answers", "last", or "first N".

    "all" leaves the data's own `train` and `weight` unchanged; the others set `train` to false on every other turn.
    "answers" are all assistant turns.
    """
    if trained_turns == "all":
        return messages
    turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
    if trained_turns == "answers":
        chosen = set(turns)
    else:
        chosen = set(turns[-1:] if trained_turns == "last" else turns[: int(trained_turns.removeprefix("first "))])
    return [
        attrs.evolve(message, train=i in chosen and message.train is not False) if i in turns else message
        for i, message in enumerate(messages)
    ]


def _simple_message(turn: Any, roles: Mapping[str, str] | None) -> Message | None:
    """The message of a turn that has only a known role and a text, as most do; None for any other turn."""
    if type(turn) is not dict and type(turn) is not Meant:
        return None
    role, content = turn.get("role"), turn.get("content")
    if type(content) is not str or type(role) is not str:
        return None
    if roles:
        role = roles.get(role, role)
    if role not in KNOWN or (len(turn) > 2 and sum(value is not None for value in turn.values()) > 2):
        return None
    return Message(role, content)


def _message(turn: Any, where: str, asked: _Asked) -> Message:
    if isinstance(turn, str) and turn.lstrip().startswith("{"):
        turn = from_json(turn, where, fix="Write messages with json.dumps.")
    if isinstance(turn, (list, tuple)) and len(turn) == 2 and is_role(turn[0]):
        turn = {"role": turn[0], "content": turn[1]}
    if not isinstance(turn, Mapping):
        raise RowError(f"{where} is {kind_of(turn)}, not a message.", fix='A message is {"role": …, "content": …}.')
    turn = _item({key: _plain(value) for key, value in turn.items() if value is not None})
    speaker = speaker_of(turn)
    role = role_of(turn, where, asked.roles, asked.format_name)
    said = next((key for key in _CONTENT if turn.get(key) is not None), "content")
    content = turn.get(said)
    calls: Any = turn.get("tool_calls")
    if role == CALL:
        role = "assistant"
        if asked.calls == "tool_calls":
            content, calls = "", _calls_of_turn(content, calls, where, turn[speaker], asked)
    where = f"{where} ({role})"
    calls = calls_of(calls, where)
    extra = {key: without_nulls(value) for key, value in turn.items() if key not in _KEYS | {speaker, said}}
    if content is None and not calls and not any(extra.get(key) for key in _SAYS):
        raise RowError(f'{where} has no "content".', fix="Give it a text, or drop the row.")
    weight = turn.get("weight")
    if weight is not None and not (isinstance(weight, (int, float)) and 0 <= weight <= 1):
        raise RowError(f"{where}: weight must be a number from 0.0 to 1.0, got {weight!r}.")
    train = turn.get("train")
    if train is not None and not (isinstance(train, (bool, int)) and train in (0, 1)):
        raise RowError(f"{where}: train must be true or false, got {train!r}.")
    message = Message(
        role=role,
        content=content_of(content, where, role),
        train=None if train is None else bool(train),
        weight=None if weight is None else float(weight),
        reasoning=_reasoning(turn, where),
        tool_calls=calls or (),
        tool_call_id=turn.get("tool_call_id"),
        name=turn.get("name"),
        extra=extra,
    )
    return as_marked(message, where)


def _plain(value: Any) -> Any:
    return without_arrays(value) if hasattr(value, "tolist") or type(value) in (list, float) else value


def _item(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn that says otherwise who speaks: by its only key, or by its type as in OpenAI's Responses and LangChain."""
    if len(turn) == 1 and is_role(role := next(iter(turn))):
        return {"role": role, "content": turn[role]}
    if turn.get(speaker_of(turn)) is not None or not isinstance(turn.get("type"), str):
        return turn
    number, named = turn.get("call_id"), turn["type"]
    if named == "function_call":
        call = {"id": number, "name": turn.get("name"), "arguments": turn.get("arguments")}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if named == "function_call_output":
        return {"role": "tool", "content": turn.get("output"), "tool_call_id": number}
    if named == "reasoning":
        thoughts = text_of_parts(turn.get("content") or turn.get("summary"))
        return {"role": "assistant", "content": "", "reasoning": thoughts}
    if is_role(named):
        held = turn.get("data")
        return {**turn, **(held if isinstance(held, Mapping) else {}), "role": named, "data": None, "type": None}
    return turn


def _calls_of_turn(content: Any, calls: Any, where: str, role: Any, asked: _Asked) -> list[Mapping[str, Any]]:
    """The calls of a turn that says nothing else; its content is JSON of one or several."""
    given = calls if calls else content
    try:
        found = calls_of(given, where)
    except RowError as error:
        if "is not valid JSON" not in error.what and "is not a list" not in error.what:
            raise
        found = []
    if not found or not all("function" in call for call in found):
        option = asked.kept_by or f"roles: {{{role}: assistant}}"
        raise RowError(
            f"{where} is not a function_call in JSON with name and arguments: {given!r:.60}.",
            fix=f"Mend it, or keep the text: format: {{{asked.format_name}: {{{option}}}}}.",
        )
    return found


def _reasoning(turn: Mapping[str, Any], where: str) -> str | None:
    """The reasoning, under any of its names; if there are several, they must agree."""
    found: dict[str, str] = {}
    for name in (name for name in REASONING if name in turn):
        text = text_of_parts(turn[name])
        if text is None:
            raise RowError(f"{where}: {name} is {kind_of(turn[name])}, not a text: {shortened(turn[name])}.")
        found[name] = text
    said = {name: text for name, text in found.items() if text} or found
    if len(set(said.values())) > 1:
        raise RowError(f"{where}: {' and '.join(said)} differ.", fix="Keep one of them.")
    return next(iter(said.values()), None)
