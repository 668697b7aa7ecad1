"""Conversations as chat templates read them, and their shapes: everything about a conversation except its words.

Nearly every template renders two conversations of the same shape in the same way. What is learned from one is therefore
used for the other, and verified there.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import attrs
from attrs import frozen

from sftcore.chat.template import Turn, json_data
from sftcore.core.errors import RowError
from sftcore.core.types import Message, Part
from sftcore.rows.details import THOUGHTS

_THINKING = re.compile(r"(<think>|</think>)")

Kind: TypeAlias = Literal["content", "reasoning"]
Mark: TypeAlias = Callable[[int, str, Kind], str]
"""From a message's index, one of its texts without leading and trailing white space, and its kind, to a replacement."""


@frozen
class Variant:
    """How messages are passed to a template, since templates differ in what they read.

    arguments: the arguments of tool calls, as mappings or as JSON text; "calls" makes all calls one JSON text.
    empty: the content of a message that has only tool calls; "given" leaves out a null.
    content: "given" passes it as it is, "parts" each text as one part, "text" all parts joined to one text.
    """

    arguments: Literal["mapping", "json", "calls"] = "mapping"
    empty: Literal["given", "null", "text"] = "given"
    content: Literal["given", "parts", "text"] = "given"


def variants(turns: Sequence[Message], prints: frozenset[str], *, as_json: bool) -> Iterator[Variant]:
    """The ways to pass these messages, the data's own first, to a template that prints these shapes of content.

    `as_json` says that it prints mappings as Python does, so that they are to be JSON before it gets them.
    """
    contents: list[Any] = list(prints) if len(prints) == 1 else ["given", "parts", "text"]
    empties: list[Any] = ["given"]
    arguments: list[Any] = ["mapping"]
    if any(turn.tool_calls for turn in turns):
        arguments = ["json", "calls"] if as_json else ["mapping", "json"]
        if any(turn.tool_calls and not turn.content for turn in turns):
            empties = ["given", "null", "text"]
    for content, empty, argument in itertools.product(contents, empties, arguments):
        yield Variant(argument, empty, content)


def as_turns(turns: Sequence[Message], variant: Variant) -> list[Turn]:
    """The messages as a template reads them.

    Raises:
        RowError: a part is not a text, and the template only knows plain texts.
    """
    return [_as_turn(turn, index, variant) for index, turn in enumerate(turns)]


def _as_turn(message: Message, index: int, variant: Variant) -> Turn:
    content: Any = message.content
    if variant.content == "text" and content is not None and not isinstance(content, str):
        content = _joined(content, index)
    elif variant.content == "parts" and isinstance(content, str):
        content = [{"type": "text", "text": content}]
    elif content is not None and not isinstance(content, str):
        content = [json_data(part.as_template()) for part in content]
    turn: Turn = {"role": message.role}
    if content is not None:
        # many templates would print None as a word
        turn["content"] = content
    if message.reasoning is not None:
        # gpt-oss and LFM2.5 read the second name
        turn["reasoning_content"] = turn["thinking"] = message.reasoning
    if message.tool_calls:
        calls = json_data(message.tool_calls)
        if variant.arguments == "json":
            calls = [_arguments_as_json(call) for call in calls]
        turn["tool_calls"] = json.dumps(calls, ensure_ascii=False) if variant.arguments == "calls" else calls
        if variant.empty != "given" and not message.content:
            turn["content"] = "" if variant.empty == "text" else None
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        turn["name"] = message.name
    if message.extra:
        turn.update(json_data(message.extra))
    return turn


def shape_of(turns: Sequence[Message]) -> tuple[Hashable, list[str]]:
    """The conversation's shape, and its words in the order in which `marked` visits them."""
    key: list[Hashable] = []
    words: list[str] = []
    for turn in turns:
        content = turn.content
        if type(content) is str and _is_bare(turn) and "think>" not in content:
            bare = content.strip()
            if bare:
                words.append(bare)
            key.append((turn.role, bool(bare), *_edges(content, bare)))
        else:
            key.append(_full_shape(turn, words))
    return tuple(key), words


def _full_shape(turn: Message, words: list[str]) -> Hashable:
    def mark(index: int, text: str, kind: Kind) -> str:
        words.append(text)
        return "\0"

    found = marked(turn, 0, mark)
    calls = repr(turn.tool_calls) if turn.tool_calls else ""
    extra = repr(turn.extra) if turn.extra else ""
    content: Any = found.content
    if content is not None and not isinstance(content, str):
        content = tuple((part.type, part.text, repr(json_data(part.extra)) if part.extra else "") for part in content)
    return (turn.role, content, found.reasoning, calls, extra, turn.name, turn.tool_call_id)


def marked(turn: Message, index: int, mark: Mark) -> Message:
    """The message with each of its texts replaced by `mark`; outer white space and thinking tags stay."""

    def put(text: str, kind: Kind) -> str:
        bare = text.strip()
        return text.replace(bare, mark(index, bare, kind), 1) if bare else text

    reasoning = None if turn.reasoning is None else put(turn.reasoning, "reasoning")
    content: Any = turn.content
    if isinstance(content, str):
        content = _marked_text(content, put)
    elif content is not None:
        content = [
            part if part.text is None else Part(part.type, _marked_text(part.text, put), part.extra) for part in content
        ]
    if content is turn.content and reasoning is turn.reasoning:
        return turn
    return attrs.evolve(turn, content=content, reasoning=reasoning)


def places_of(turn: Message) -> list[tuple[bool, int, int]]:
    """Where the texts are that `marked` visits: whether in the reasoning, their beginning, and their length.

    Of a content, it is the place in the texts of its parts joined, without those of reasoning.
    """
    words: list[str] = []

    def mark(index: int, text: str, kind: Kind) -> str:
        words.append(text)
        return "\0"

    found = marked(turn, 0, mark)
    left = iter(words)
    places = [(True, 0, len(next(left)))] if turn.reasoning is not None and turn.reasoning.strip() else []
    content: Any = [Part("text", found.content)] if isinstance(found.content, str) else found.content
    said = 0
    for part in content or ():
        thought = part.type in THOUGHTS
        pieces = (part.text or "").split("\0")
        for number, piece in enumerate(pieces):
            said += 0 if thought else len(piece)
            if number < len(pieces) - 1:
                length = len(next(left))
                places.append((thought, said, length))
                said += 0 if thought else length
    return places


def _marked_text(text: str, put: Callable[[str, Kind], str]) -> str:
    if "think>" not in text:
        return put(text, "content")
    pieces = _THINKING.split(text)
    # inside the tags, or before a closing tag whose opening tag was in the generation prompt
    return "".join(
        piece
        if _THINKING.fullmatch(piece)
        else put(piece, "reasoning" if "</think>" in pieces[i + 1 : i + 2] else "content")
        for i, piece in enumerate(pieces)
    )


def _is_bare(turn: Message) -> bool:
    """Whether the message has a role and content, and nothing else that templates read."""
    return (
        turn.reasoning is None
        and not turn.tool_calls
        and not turn.extra
        and turn.name is None
        and turn.tool_call_id is None
    )


def _edges(text: str, bare: str) -> tuple[str, str]:
    start = text.find(bare)
    return text[:start], text[start + len(bare) :]


def _joined(parts: Sequence[Part], index: int) -> str:
    if other := [part.type for part in parts if part.type != "text" or part.text is None]:
        raise RowError(
            f'message {index} has a part of type "{other[0]}", which the chat template does not render.',
            fix="Use a model and template that render it, or remove the part.",
        )
    return "".join(part.text or "" for part in parts)


def _arguments_as_json(call: Any) -> Any:
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), (dict, list)):
        return call
    function = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
    return {**call, "function": function} if "function" in call else function
