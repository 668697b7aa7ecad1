"""What a chat template makes of a conversation's shape: the rendering with holes where the words stand.

A conversation is rendered once with a sentinel in place of each of its texts; what the template writes around them is
the skeleton, in which turns and the completion are found. The proof is the same for each row: its own words put into
the holes must give the row's real rendering byte for byte. A skeleton is kept for all conversations of the shape.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import attrs
from attrs import frozen

from sftcore.chat.shapes import Kind, Variant, marked
from sftcore.chat.spans import LEFT_OUT, CallPlaces, Hole, Turn, TurnFinder, refused
from sftcore.chat.template import Habits, SpecialTexts
from sftcore.core.errors import RowError
from sftcore.core.types import Message

Render: TypeAlias = Callable[[Sequence[Message], bool], str]
"""Renders messages, with or without the generation prompt."""

REASONING_EARLIER = "reasoning of earlier turns left out by the chat template"
REASONING_LAST = "reasoning of the last turn left out by the chat template"
STOP_APPENDED = "stop token appended: the chat template ends the last turn without one"
UNENDED = "turns without an end token in the chat template"
OWN_SYSTEM = "the chat template adds a system prompt of its own"

_DIGITS = 5


@frozen
class Place:
    """A place in any filled skeleton: behind so many holes, and so many characters of the template's own."""

    holes: int
    literal: int


@frozen
class Skeleton:
    """The rendering of one shape of conversation.

    literals: what the template writes, one more than there are holes.
    order: which of the conversation's words fill each hole, None for all of them in order; escaped: whether they stand
    there as in JSON.
    turns: the assistant's, as (message, start, end).
    completion: where the completion begins; completion_end: where it ends, None where its own words decide that.
    stop: the token that must be appended.
    general: whether all words became holes, so that the skeleton is worth keeping.
    left_out: whether words of others than the assistant are not in the rendering.
    unproven: why the conversation could not be verified; nothing but the notes is known then.
    """

    variant: Variant
    literals: tuple[str, ...]
    order: tuple[int, ...] | None
    escaped: tuple[bool, ...]
    turns: tuple[tuple[int, Place, Place], ...]
    completion: Place | None
    completion_end: Place | None
    stop: str
    notes: tuple[str, ...]
    general: bool
    left_out: bool = False
    unproven: str = ""

    def fill(self, words: Sequence[str]) -> tuple[str, list[int]]:
        """The conversation with these words, and how long the words before each hole are, all together."""
        filling = words if self.order is None else [words[i] for i in self.order]
        if self.escaped:
            filling = [_escape(word) if escape else word for word, escape in zip(filling, self.escaped, strict=True)]
        return _joined(self.literals, filling), list(accumulate(map(len, filling), initial=0))


def learn(
    turns: Sequence[Message],
    text: str,
    render: Render,
    habits: Habits,
    special: SpecialTexts,
    variant: Variant,
    prompt_turns: int | None = None,
) -> Skeleton:
    """The skeleton of a conversation that is rendered as `text`.

    Where its own words do not rebuild the text, `unproven` says why; turns are then not known.

    Raises:
        RowError: the template leaves assistant words or calls out.
    """
    sentinels = _verified(turns, text, render)
    if sentinels is None or not sentinels.rebuilds:
        unproven = "the chat template rewrites the messages' text, so the assistant's turns cannot be told apart"
        return Skeleton(variant, (), None, (), (), None, None, "", (), True, unproven=unproven)
    finder = TurnFinder(turns, sentinels.text, sentinels.holes, sentinels.prefix, sentinels.calls(), habits, special)
    found = finder.find()
    left_out = sentinels.left_out(turns)
    notes = [
        *left_out,
        *sentinels.reasoning_left_out(turns),
        *([UNENDED] if finder.unended else []),
        *([OWN_SYSTEM] if habits.adds_system and turns[0].role not in ("system", "developer") else []),
    ]
    order = tuple(hole.original for hole in sentinels.holes)
    return Skeleton(
        variant=variant,
        literals=sentinels.literals,
        order=None if order == tuple(range(sentinels.count)) else order,
        escaped=sentinels.escaped,
        turns=tuple((turn.message, sentinels.place(turn.start), sentinels.place(turn.end)) for turn in found),
        completion=None if prompt_turns is None else _completion(sentinels, found, prompt_turns, turns),
        completion_end=_completion_end(sentinels, found, turns, special),
        stop=finder.stop,
        notes=tuple(notes),
        general=sentinels.everyone,
        left_out=bool(left_out),
    )


def _verified(turns: Sequence[Message], text: str, render: Render) -> _Sentinels | None:
    """The first sentinel rendering that rebuilds the text, else the first that there is.

    Raises:
        RowError: assistant words are not in the rendering at all.
    """
    first: _Sentinels | None = None
    for everyone in (True, False):
        try:
            sentinels = _Sentinels(turns, text, render, everyone=everyone)
        except RowError:  # a template may demand something of the words, such as JSON of a tool
            continue
        first = first or sentinels
        if sentinels.rebuilds:
            first = sentinels
            break
    if first is not None:
        first.refuse_left_out(turns)
    return first


class _Sentinels:
    """A conversation rendered with sentinels: all of its texts, or those of the assistant alone.

    The second is for templates that read the user's or a tool's words, or print them otherwise than they are.
    """

    def __init__(self, turns: Sequence[Message], text: str, render: Render, *, everyone: bool) -> None:
        self._render = render
        self._originals: list[tuple[int, str, Kind]] = []
        stem = "q7z"
        while stem in text:
            stem += "X"
        self._stem = stem
        self._pattern = re.compile(f"{stem}([0-9]{{{_DIGITS}}})zq")

        def mark(index: int, part: str, kind: Kind) -> str:
            self._originals.append((index, part, kind))
            hidden = everyone or turns[index].role == "assistant"
            return f"{stem}{len(self._originals) - 1:0{_DIGITS}}zq" if hidden else part

        self._turns = [marked(turn, index, mark) for index, turn in enumerate(turns)]
        self.everyone = everyone
        self._real = text
        self.count = len(self._originals)
        self.escaped: tuple[bool, ...] = ()
        self.text = render(self._turns, False)
        self.holes = self._holes(self.text)
        ends = [0, *(hole.end for hole in self.holes)]
        starts = [*(hole.start for hole in self.holes), len(self.text)]
        self.literals = tuple(self.text[end:start] for end, start in zip(ends, starts, strict=True))
        self.rebuilds = self._rebuilds(text, turns)

    def _rebuilds(self, text: str, turns: Sequence[Message]) -> bool:
        words = [self._originals[hole.original][1] for hole in self.holes]
        if _joined(self.literals, words) == text:
            return True
        # gpt-oss prints tools' answers as JSON
        escaped = tuple(
            turns[hole.message].role != "assistant" and literal.endswith('"')
            for hole, literal in zip(self.holes, self.literals, strict=False)
        )
        words = [_escape(word) if escape else word for word, escape in zip(words, escaped, strict=True)]
        if any(escaped) and _joined(self.literals, words) == text:
            self.escaped = escaped
            return True
        return False

    def _holes(self, text: str) -> list[Hole]:
        holes = []
        for found in self._pattern.finditer(text):
            number = int(found.group(1))
            message, _, kind = self._originals[number]
            holes.append(Hole(found.start(), found.end(), number, message, kind == "reasoning"))
        return holes

    def prefix(self, count: int, generation_prompt: bool) -> tuple[str, list[Hole]] | None:
        """The first messages alone; one more than there are adds a tool's answer to the last one's calls."""
        turns = self._turns[:count]
        if count > len(self._turns):
            call = turns[-1].tool_calls[-1]
            name = str(call.get("function", call).get("name", ""))
            turns.append(Message("tool", f"{self._stem}!", name=name, tool_call_id=call.get("id")))
        if not turns:
            return None
        try:
            text = self._render(turns, generation_prompt)
        except RowError:
            return None
        return text, self._holes(text)

    def calls(self) -> CallPlaces | None:
        """Where each call's name stands, by one more rendering with sentinels for them; None where that differs."""
        if not any(turn.tool_calls for turn in self._turns):
            return {}
        names: list[tuple[int, int, str]] = []

        def hide(index: int, number: int, call: Mapping[str, Any]) -> Mapping[str, Any]:
            function = call.get("function", call)
            names.append((index, number, str(function.get("name", ""))))
            function = {**function, "name": f"{self._stem}{len(names) - 1:0{_DIGITS}}call"}
            return {**call, "function": function} if "function" in call else function

        turns = [
            attrs.evolve(turn, tool_calls=[hide(i, number, call) for number, call in enumerate(turn.tool_calls)])
            for i, turn in enumerate(self._turns)
        ]
        try:
            text = self._render(turns, False)
        except RowError:
            return None
        places: dict[tuple[int, int], tuple[int, int]] = {}
        rebuilt, at, length = [], 0, 0
        for found in re.finditer(f"{self._stem}([0-9]{{{_DIGITS}}})call", text):
            index, number, name = names[int(found.group(1))]
            length += found.start() - at
            places.setdefault((index, number), (length, length + len(name)))
            rebuilt += [text[at : found.start()], name]
            length += len(name)
            at = found.end()
        return places if "".join([*rebuilt, text[at:]]) == self.text else None

    def place(self, at: int) -> Place:
        """A character of the sentinel rendering as a place in every filling."""
        passed = [hole for hole in self.holes if hole.end <= at]
        return Place(len(passed), at - sum(hole.end - hole.start for hole in passed))

    def _missing(self) -> list[tuple[int, int, Kind]]:
        """The originals that are not in the rendering: number, message and kind."""
        there = {hole.original for hole in self.holes}
        return [
            (number, index, kind)
            for number, (index, _, kind) in enumerate(self._originals)
            if number not in there and (self.everyone or self._turns[index].role == "assistant")
        ]

    def refuse_left_out(self, turns: Sequence[Message]) -> None:
        """Raise where an assistant's words are not in the rendering at all."""
        for number, index, kind in self._missing():
            # one that stands there in other letters, or that was cut, was rewritten and not left out
            there = not self.rebuilds and (
                self._originals[number][1] in self._real
                or re.search(f"{self._stem}{number:0{_DIGITS}}zq", self.text, re.IGNORECASE)
            )
            if turns[index].role == "assistant" and kind == "content" and not there:
                raise refused(index, LEFT_OUT)

    def left_out(self, turns: Sequence[Message]) -> list[str]:
        """Notes on words of others than the assistant that are not in the rendering."""
        roles = dict.fromkeys(turns[index].role for _, index, _ in self._missing())
        return [f"{role} messages left out by the chat template" for role in roles if role != "assistant"]

    def reasoning_left_out(self, turns: Sequence[Message]) -> list[str]:
        """Notes on the assistant's reasoning that is not in the rendering."""
        last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        missing = [index for _, index, _ in self._missing() if turns[index].role == "assistant"]
        return list(dict.fromkeys(REASONING_LAST if index == last else REASONING_EARLIER for index in missing))


def is_answered(turns: Sequence[Message], prompt_turns: int) -> bool:
    """Whether the prompt takes a generation prompt: not if it ends with the assistant's words, which are continued."""
    return turns[prompt_turns - 1].role != "assistant" and turns[prompt_turns].role == "assistant"


def _completion(
    sentinels: _Sentinels, found: Sequence[Turn], prompt_turns: int, turns: Sequence[Message]
) -> Place | None:
    """Where the completion begins: behind the prompt's own rendering, or where that differs once the completion
    follows, where the completion's first turn begins. None where prompt and completion are not apart there."""
    answered = is_answered(turns, prompt_turns)
    prompt = sentinels.prefix(prompt_turns, answered)
    if prompt is not None and sentinels.text.startswith(prompt[0]):
        start = len(prompt[0])
    elif first := [turn.start for turn in found if turn.message == prompt_turns]:
        start = first[0]
    else:
        return None
    apart = all((hole.message < prompt_turns) == (hole.end <= start) for hole in sentinels.holes)
    return sentinels.place(start) if apart else None


def _completion_end(
    sentinels: _Sentinels, found: Sequence[Turn], turns: Sequence[Message], special: SpecialTexts
) -> Place | None:
    """Behind the last turn where it is the assistant's, else behind the last end token."""
    text = sentinels.text
    if found and found[-1].message == len(turns) - 1:
        return sentinels.place(found[-1].end)
    ended = len(sentinels.literals[-1].rstrip())
    if ended and text.rstrip().endswith(special.texts):
        return sentinels.place(len(text.rstrip()))
    return sentinels.place(len(text)) if ended else None


def _joined(literals: Sequence[str], words: Sequence[str]) -> str:
    whole = [""] * (2 * len(words) + 1)
    whole[::2] = literals
    whole[1::2] = words
    return "".join(whole)


def _escape(word: str) -> str:
    return json.dumps(word, ensure_ascii=False)[1:-1]
