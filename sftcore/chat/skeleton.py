"""How a chat template renders one shape of conversation: the template's own text, with slots for the words.

A conversation is rendered once with a sentinel in place of each of its texts. What the template writes around them is
the skeleton, in which the turns and the completion are located. Every row is verified in the same way: its own words,
put into the slots, must give the row's real rendering byte for byte. A skeleton serves all conversations of its shape.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate

from attrs import frozen

from sftcore.chat.comparisons import Edges, NotLocatedError, refused
from sftcore.chat.hidden import HiddenConversation, Original, Render, Sentinels
from sftcore.chat.markers.located import RenderMarked, merged, proven_marks
from sftcore.chat.proof import carried_over, proven_turns
from sftcore.chat.shapes import Kind, Variant, as_turns, marked
from sftcore.chat.spans import LEFT_OUT, TurnFinder, TurnSpan
from sftcore.chat.template import SpecialTexts, TemplateTraits
from sftcore.core.errors import RowError
from sftcore.core.types import Message

REASONING_EARLIER = "reasoning of earlier turns left out by the chat template"
REASONING_LAST = "reasoning of the last turn left out by the chat template"
STOP_APPENDED = "stop token appended, because the chat template ends the last turn without one"
PLAIN_END = "what the chat template ends turns with is not a token of the tokenizer, but text"
REWRITTEN = "the chat template rewrites the messages' text, so the assistant's turns cannot be located"
READS_WORDS = "the chat template sets its generation markers by what the messages say"
UNENDED = "the chat template writes no end token after some turns"
OWN_SYSTEM = "the chat template adds a system prompt of its own"


@frozen
class Slot:
    """A sentinel in the rendering: its characters, the original text that it stands for, and that text's message."""

    start: int
    end: int
    original: int
    message: int


@frozen
class Position:
    """A position in any filled skeleton: the number of slots before it, and of the template's own characters."""

    slots: int
    literal: int

    def at(self, lengths: Sequence[int]) -> int:
        """The position as an index, where `lengths` holds for each slot the total length of the words before it."""
        return self.literal + lengths[self.slots]


@frozen
class Skeleton:
    """The rendering of one shape of conversation.

    literals: what the template writes around the slots; one more than there are slots.
    order: which of the conversation's texts fills each slot, or None for all of them in order.
    escaped: whether each slot holds its text as JSON spells it.
    turns: the assistant's turns, as (message, start, end).
    completion: where the completion begins. completion_end: where it ends, or None if its own words decide that.
    stop: the token that must be appended.
    general: whether all texts became slots, so that other conversations can use the skeleton.
    left_out: whether the rendering lacks words of anyone but the assistant. thoughtless: the messages of the assistant
        of which it lacks reasoning.
    proven: the assistant's turns as they were found, with what the template writes before them and what ends them.
    marks: what the template's own generation markers enclose, or None where they were not proven. unmarked: the ends of
        turns that they leave out.
    as_python: whether calls are printed as Python shows them, and not as JSON.
    unproven: why the conversation could not be verified; only the notes are known then.
    """

    variant: Variant
    literals: tuple[str, ...]
    order: tuple[int, ...] | None
    escaped: tuple[bool, ...]
    turns: tuple[tuple[int, Position, Position], ...]
    completion: Position | None
    completion_end: Position | None
    stop: str
    notes: tuple[str, ...]
    general: bool
    left_out: bool = False
    unproven: str = ""
    as_python: bool = False
    marks: tuple[tuple[Position, Position], ...] | None = None
    unmarked: tuple[tuple[Position, Position], ...] = ()
    proven: tuple[TurnSpan, ...] = ()
    thoughtless: tuple[int, ...] = ()

    def fill(self, words: Sequence[str]) -> tuple[str, list[int]]:
        """The conversation with these words, and for each slot the total length of the words before it."""
        chosen = words if self.order is None else [words[i] for i in self.order]
        if self.escaped:
            chosen = [_escape(word) if escape else word for word, escape in zip(chosen, self.escaped, strict=True)]
        return _joined(self.literals, chosen), list(accumulate(map(len, chosen), initial=0))

    def encloses(self, marks: Sequence[tuple[int, int]], lengths: Sequence[int]) -> bool:
        """Whether markers enclose in a filled skeleton what they were proven to enclose."""
        proven = [(one.at(lengths), other.at(lengths)) for one, other in self.marks or ()]
        return self.marks is not None and (proven == marks or merged(proven) == merged(marks))


def learn(
    turns: Sequence[Message],
    text: str,
    render: Render,
    traits: TemplateTraits,
    special: SpecialTexts,
    variant: Variant,
    edges: Edges,
    context: Hashable,
    render_otherwise: Callable[[Sequence[Message]], str],
    prompt_turns: int | None = None,
    render_marked: RenderMarked | None = None,
) -> Skeleton:
    """The skeleton of a conversation that is rendered as `text`.

    If its own words do not rebuild the text, `unproven` says why, and the turns are not known.

    Raises:
        RowError: the template leaves words or tool calls of the assistant out.
    """
    sentinels = _verified(turns, text, render)
    if sentinels is None or not sentinels.rebuilds:
        return Skeleton(variant, (), None, (), (), None, None, "", (), True, unproven=REWRITTEN)
    talk = sentinels.hidden()
    finder = TurnFinder(talk, traits, special, edges, context)
    try:
        turns_found: Sequence[TurnSpan] | None = None
        if sentinels.structure is not None:
            # the words of others are rewritten: where they are hidden, turns look like those of other rows
            elsewhere = TurnFinder(sentinels.structure.hidden(), traits, special, edges, context)
            turns_found = carried_over(elsewhere, talk, special, edges, render_otherwise)
            finder = elsewhere if turns_found is not None else finder
        if turns_found is None:
            turns_found = proven_turns(finder, talk, special, edges, render_otherwise)
    except NotLocatedError as error:
        seen = (*sentinels.left_out(turns), *sentinels.reasoning_left_out(turns))
        missing, cut = bool(sentinels.left_out(turns)), sentinels.thoughtless()
        return Skeleton(variant, (), None, (), (), None, None, "", seen, True, missing, error.what, thoughtless=cut)
    marks = None
    if render_marked is not None:
        marks = proven_marks(talk, turns_found, render_marked, traits, special, stops=bool(finder.stop))
    found = [
        TurnSpan(turn.message, talk.visible(turn.start), talk.visible(turn.end), turn.header, turn.ender)
        for turn in turns_found
    ]
    left_out = sentinels.left_out(turns)
    notes = [
        *left_out,
        *sentinels.reasoning_left_out(turns),
        *([UNENDED] if finder.unended else []),
        *([PLAIN_END] if finder.plain else []),
        *([OWN_SYSTEM] if traits.adds_system and turns[0].role not in ("system", "developer") else []),
        *(marks.notes if marks is not None else ()),
    ]
    order = tuple(slot.original for slot in sentinels.slots)

    def positions(stretches: Sequence[tuple[int, int]]) -> tuple[tuple[Position, Position], ...]:
        return tuple(
            (sentinels.position(talk.visible(start)), sentinels.position(talk.visible(end))) for start, end in stretches
        )

    return Skeleton(
        variant=variant,
        literals=sentinels.literals,
        order=None if order == tuple(range(sentinels.count)) else order,
        escaped=sentinels.escaped,
        turns=tuple((turn.message, sentinels.position(turn.start), sentinels.position(turn.end)) for turn in found),
        completion=None if prompt_turns is None else _completion(sentinels, found, prompt_turns, turns),
        completion_end=_completion_end(sentinels, found, turns, special),
        stop=finder.stop,
        notes=tuple(notes),
        general=sentinels.everyone,
        left_out=bool(left_out),
        as_python=_as_python(talk, variant),
        proven=tuple(found),
        thoughtless=sentinels.thoughtless(),
        marks=None if marks is None else positions(marks.marks),
        unmarked=() if marks is None else positions(marks.ends),
    )


def _as_python(talk: HiddenConversation, variant: Variant) -> bool:
    """Whether the calls, or their arguments, stand in the rendering as Python shows mappings."""
    calls = [call.get("function", call) for turn in talk.turns for call in turn.tool_calls]
    keys = (str(next(iter(part), "")) for call in calls for part in (call, call.get("arguments") or ()))
    if "{'" not in talk.rendering.text and not any("'" in key for key in keys):
        return False
    for turn in as_turns(talk.turns, variant) if any(turn.tool_calls for turn in talk.turns) else ():
        for call in turn.get("tool_calls", ()) if isinstance(turn.get("tool_calls"), list) else ():
            function = call.get("function", call)
            for part in (function, function.get("arguments")):
                if isinstance(part, dict) and part and str(part) in talk.rendering.text:
                    return True
    return False


def _verified(turns: Sequence[Message], text: str, render: Render) -> _Sentinels | None:
    """The first rendering with sentinels that rebuilds the text; if none does, the first that succeeds.

    Raises:
        RowError: words of the assistant are missing from the rendering.
    """
    first: _Sentinels | None = None
    for everyone in (True, False):
        try:
            sentinels = _Sentinels(turns, text, render, everyone=everyone)
        except RowError:  # a template may require something of the words, such as JSON from a tool
            continue
        first = first or sentinels
        if sentinels.rebuilds:
            sentinels.structure = first if first is not sentinels else None
            first = sentinels
            break
    if first is not None:
        first.refuse_left_out(turns)
    return first


class _Sentinels:
    """A conversation rendered with sentinels in place of all its texts, or only of the assistant's.

    The latter serves templates that read the words of the user or a tool, or change them.
    """

    def __init__(self, turns: Sequence[Message], text: str, render: Render, *, everyone: bool) -> None:
        self._render = render
        self._originals: list[tuple[int, str, Kind]] = []
        self._made = Sentinels(text)

        def mark(index: int, part: str, kind: Kind) -> str:
            self._originals.append((index, part, kind))
            hidden = everyone or turns[index].role == "assistant"
            return self._made.word(len(self._originals) - 1) if hidden else part

        self.structure: _Sentinels | None = None
        self._turns = [marked(turn, index, mark) for index, turn in enumerate(turns)]
        self.everyone = everyone
        self._real = text
        self.count = len(self._originals)
        self.escaped: tuple[bool, ...] = ()
        self._talk: HiddenConversation | None = None
        if everyone and any(turn.tool_calls for turn in turns) and not self._lacking(text):
            talk = self._hiding()
            self._talk = talk if talk.hide_at_once(text) else None
        self.text = self._talk.text if self._talk else render(self._turns, False)
        found = self._made.found_in(self.text).anchors if self._talk is None else self._talk.texts()
        self.slots = [Slot(one.start, one.end, one.number, self._originals[one.number][0]) for one in found]
        self._hidden_before = list(accumulate((slot.end - slot.start for slot in self.slots), initial=0))
        ends = [0, *(slot.end for slot in self.slots)]
        starts = [*(slot.start for slot in self.slots), len(self.text)]
        self.literals = tuple(self.text[end:start] for end, start in zip(ends, starts, strict=True))
        self.rebuilds = self._rebuilds(text, turns)

    def _lacking(self, text: str) -> bool:
        """Whether a rendering lacks words of the assistant, so that the row will be refused."""
        contents = (words for index, words, kind in self._originals if kind == "content" and self._is_said(index))
        return any(words not in text for words in contents)

    def _is_said(self, index: int) -> bool:
        return self._turns[index].role == "assistant"

    def _rebuilds(self, text: str, turns: Sequence[Message]) -> bool:
        words = [self._originals[slot.original][1] for slot in self.slots]
        if _joined(self.literals, words) == text:
            return True
        # gpt-oss prints the answers of tools as JSON
        escaped = tuple(
            turns[slot.message].role != "assistant" and literal.endswith('"')
            for slot, literal in zip(self.slots, self.literals, strict=False)
        )
        words = [_escape(word) if escape else word for word, escape in zip(words, escaped, strict=True)]
        if any(escaped) and _joined(self.literals, words) == text:
            self.escaped = escaped
            return True
        return False

    def prefix(self, count: int, generation_prompt: bool) -> str | None:
        """The first messages alone."""
        try:
            return self._render(self._turns[:count], generation_prompt)
        except RowError:
            return None

    def hidden(self) -> HiddenConversation:
        """The same conversation with its calls hidden as well."""
        if self._talk is None:
            self._talk = self._hiding()
            self._talk.hide_in(self.text)
        return self._talk

    def _hiding(self) -> HiddenConversation:
        originals = [Original(index, kind, words) for index, words, kind in self._originals]
        return HiddenConversation(self._turns, originals, self._made, self._render)

    def position(self, at: int) -> Position:
        """An index into the rendering with sentinels, as a position in any filled skeleton."""
        passed = bisect.bisect_right(self.slots, at, key=lambda slot: slot.end)
        return Position(passed, at - self._hidden_before[passed])

    def _missing(self) -> list[tuple[int, int, Kind]]:
        """The original texts that are missing from the rendering: number, message and kind."""
        there = {slot.original for slot in self.slots}
        return [
            (number, index, kind)
            for number, (index, _, kind) in enumerate(self._originals)
            if number not in there and (self.everyone or self._is_said(index))
        ]

    def refuse_left_out(self, turns: Sequence[Message]) -> None:
        """Raise if words of the assistant are missing from the rendering."""
        for number, index, kind in self._missing():
            # a text that is there in other letters, or was cut, was rewritten rather than left out
            there = not self.rebuilds and (
                self._originals[number][1] in self._real or self._made.word(number).lower() in self.text.lower()
            )
            if self._is_said(index) and kind == "content" and not there:
                raise refused(index, LEFT_OUT)

    def left_out(self, turns: Sequence[Message]) -> list[str]:
        """Notes on missing words of anyone but the assistant."""
        roles = dict.fromkeys(turns[index].role for _, index, _ in self._missing())
        return [f"{role} messages left out by the chat template" for role in roles if role != "assistant"]

    def reasoning_left_out(self, turns: Sequence[Message]) -> list[str]:
        """Notes on missing reasoning of the assistant."""
        last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        missing = [index for _, index, _ in self._missing() if self._is_said(index)]
        return list(dict.fromkeys(REASONING_LAST if index == last else REASONING_EARLIER for index in missing))

    def thoughtless(self) -> tuple[int, ...]:
        """The messages of the assistant of which reasoning is missing."""
        missing = self._missing()
        return tuple(dict.fromkeys(i for _, i, kind in missing if kind == "reasoning" and self._is_said(i)))


def is_answered(turns: Sequence[Message], prompt_turns: int) -> bool:
    """Whether a generation prompt follows; not if the prompt ends with words of the assistant, to be continued."""
    return turns[prompt_turns - 1].role != "assistant" and turns[prompt_turns].role == "assistant"


def _completion(
    sentinels: _Sentinels, found: Sequence[TurnSpan], prompt_turns: int, turns: Sequence[Message]
) -> Position | None:
    """Where the completion begins: after the prompt's own rendering, or if that changes once the completion follows, at
    the completion's first turn. None if that position does not separate the prompt from the completion."""
    answered = is_answered(turns, prompt_turns)
    prompt = sentinels.prefix(prompt_turns, answered)
    if prompt is not None and sentinels.text.startswith(prompt):
        start = len(prompt)
    elif first := [turn.start for turn in found if turn.message == prompt_turns]:
        start = first[0]
    else:
        return None
    apart = all((slot.message < prompt_turns) == (slot.end <= start) for slot in sentinels.slots)
    return sentinels.position(start) if apart else None


def _completion_end(
    sentinels: _Sentinels, found: Sequence[TurnSpan], turns: Sequence[Message], special: SpecialTexts
) -> Position | None:
    """After the last turn if it is the assistant's, otherwise after the last end token."""
    text = sentinels.text
    if found and found[-1].message == len(turns) - 1:
        return sentinels.position(found[-1].end)
    ended = len(sentinels.literals[-1].rstrip())
    if ended and text.rstrip().endswith(special.texts):
        return sentinels.position(len(text.rstrip()))
    return sentinels.position(len(text)) if ended else None


def _joined(literals: Sequence[str], words: Sequence[str]) -> str:
    whole = [""] * (2 * len(words) + 1)
    whole[::2] = literals
    whole[1::2] = words
    return "".join(whole)


def _escape(word: str) -> str:
    return json.dumps(word, ensure_ascii=False)[1:-1]
