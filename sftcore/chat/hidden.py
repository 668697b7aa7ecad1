"""Conversations in which every text is hidden behind a sentinel, and what a template makes of them.

Texts, the names of tool calls and the strings and numbers in their arguments are replaced by sentinels, so that nothing
in the data can be mistaken for something that the template writes: an end token inside an argument is not an end. Ids
are replaced where nothing else shows a call, and a message without words gets a sentinel that stands for none.
"""

from __future__ import annotations

import bisect
import copy
import itertools
import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import attrs
from attrs import field, frozen

from sftcore.core.errors import RowError
from sftcore.core.types import Message, Part

Kind: TypeAlias = Literal["content", "reasoning", "name", "argument", "id"]

_THINKING = re.compile(r"</?think>")
_DIGITS = 5
REPEATED: tuple[Kind, ...] = ("name", "id")
"""What of a call the answer of a tool may name again."""
_NUMBER_STEM = "91827364"
PROBED = {"user": 99_991, "assistant": 99_992, "tool": 99_993, "system": 99_994, "developer": 99_995}
"""The numbers of sentinels that stand for the words of turns which are only tried."""


@frozen
class Original:
    """What a sentinel stands for: the message, the kind, the number of the call in the message, and the value."""

    message: int
    kind: Kind
    value: str | int | float
    call: int | None = None


@frozen
class Anchor:
    """A sentinel in a rendering: its characters, its number, and how many of that number stand before it.

    The same occurrences of a sentinel in two renderings are equal.
    """

    start: int = field(eq=False)
    end: int = field(eq=False)
    number: int
    nth: int = 0


@frozen
class Rendering:
    """A text with its sentinels, in order."""

    text: str
    anchors: tuple[Anchor, ...]

    def place(self, like: Anchor) -> int | None:
        """Where in the order of its sentinels one of another rendering stands in this one."""
        return next((place for place, anchor in enumerate(self.anchors) if anchor == like), None)

    def behind(self, like: Anchor | None) -> str | None:
        """The text from a sentinel of another rendering, or from the start, to the next one; None if it is not here."""
        place = -1 if like is None else self.place(like)
        if place is None:
            return None
        start = 0 if place < 0 else self.anchors[place].end
        return self.text[start : self.anchors[place + 1].start if place + 1 < len(self.anchors) else None]

    def before(self, number: int) -> tuple[Anchor | None, str] | None:
        """The sentinel before the first occurrence of this one, and the text between them."""
        for i, anchor in enumerate(self.anchors):
            if anchor.number == number:
                last = self.anchors[i - 1] if i else None
                return last, self.text[last.end if last else 0 : anchor.start]
        return None

    def after_all(self) -> tuple[Anchor | None, str]:
        """The last sentinel, and the text behind it."""
        last = self.anchors[-1] if self.anchors else None
        return last, self.text[last.end if last else 0 :]


class Sentinels:
    """Makes sentinels that occur nowhere in a text, and finds them in renderings."""

    def __init__(self, text: str) -> None:
        self.stem = "q7z"
        while self.stem in text:
            self.stem += "X"
        self.number_stem = _NUMBER_STEM
        while self.number_stem in text:
            self.number_stem += "5"
        self._pattern = re.compile(f"{self.stem}([0-9]{{{_DIGITS}}})zq|{self.number_stem}([0-9]{{{_DIGITS}}})")

    def word(self, number: int) -> str:
        """The sentinel of this number, for a text."""
        return f"{self.stem}{number:0{_DIGITS}}zq"

    def figure(self, number: int) -> int:
        """The sentinel of this number, for a number."""
        return int(f"{self.number_stem}{number:0{_DIGITS}}")

    def found_in(self, text: str) -> Rendering:
        """The text with the sentinels in it."""
        found: list[Anchor] = []
        seen: dict[int, int] = {}
        for one in self._pattern.finditer(text):
            number = int(one.group(1) or one.group(2))
            seen[number] = seen.get(number, -1) + 1
            found.append(Anchor(one.start(), one.end(), number, seen[number]))
        return Rendering(text, tuple(found))


Render: TypeAlias = Callable[[Sequence[Message], bool], str]
"""Renders messages, with or without the generation prompt."""


class HiddenConversation:
    """A conversation whose texts are sentinels already, with the names and arguments of its calls hidden as well.

    `text` is the rendering in which the calls are to be read. `rendering` is that of the hidden messages `turns`. Names
    or arguments stay visible where the template reads them, so that hiding them would change what it writes. A message
    without words ends with a sentinel that stands for none, unless the template then writes something else around it.
    """

    def __init__(
        self, turns: Sequence[Message], originals: Sequence[Original], sentinels: Sentinels, render: Render
    ) -> None:
        self._given = turns
        self._contents = list(originals)
        self._render = render
        self.sentinels = sentinels
        self.turns: list[Message] = list(turns)
        self.originals: list[Original] = list(originals)
        self.text = ""
        self.rendering = Rendering("", ())
        self._ends: list[tuple[int, int]] = []
        self._own: dict[int, list[Anchor]] | None = None
        self._names = [[str(call.get("function", call).get("name", "")) for call in turn.tool_calls] for turn in turns]
        calls: list[Sequence[Kind]] = [()]
        if any(self._names):
            calls = [("name", "argument"), ("argument",), ("name",), ()]
        wordless = tuple(i for i, turn in enumerate(turns) if _is_wordless(turn))
        of_others = tuple(i for i in wordless if turns[i].role != "assistant")
        fillings = (wordless, of_others, ()) if wordless else ((),)
        self._ways = [way for way in itertools.product(calls, fillings) if any(way)]
        self._made: dict[Hashable, tuple[list[Message], list[Original], Rendering | None]] = {}
        self._with_ids: list[tuple[Sequence[Kind], Sequence[int]]] = [(("id",), ())]

    def hide_at_once(self, row: str) -> bool:
        """Hide all parts of the calls in one rendering, which tells `text` as well; False if it cannot be told.

        Args:
            row: the conversation's rendering with nothing hidden.
        """
        return bool(self._ways) and self._hide(*self._ways[0], row)

    def hide_in(self, text: str) -> None:
        """Hide as many parts of the calls as can be, given the rendering in which only the texts are hidden."""
        self.text, self.rendering = text, self.sentinels.found_in(text)
        any(self._hide(*way) for way in self._ways)

    def __call__(self, turns: Sequence[Message], generation_prompt: bool = False) -> Rendering | None:
        """A rendering of hidden messages; None if the template refuses them."""
        try:
            return self.sentinels.found_in(self._render(turns, generation_prompt))
        except RowError:
            return None

    def with_words(self, index: int) -> HiddenConversation | None:
        """The same conversation with words at the end of a message that has none; None if the template refuses it."""
        word = self.sentinels.word(len(self.originals))
        turns = [*self.turns[:index], ending_with(word, self.turns[index]), *self.turns[index + 1 :]]
        return self._like(turns, [*self.originals, Original(index, "content", "")])

    def behind_a_user(self, index: int) -> HiddenConversation | None:
        """The same conversation with a user's turn before a message; None if the template refuses it."""
        asked = Message("user", self.sentinels.word(len(self.originals)))
        originals = [attrs.evolve(one, message=one.message + (one.message >= index)) for one in self.originals]
        turns = [*self.turns[:index], asked, *self.turns[index:]]
        return self._like(turns, [*originals, Original(index, "content", "")])

    def _like(self, turns: list[Message], originals: list[Original]) -> HiddenConversation | None:
        rendering = self(turns)
        if rendering is None:
            return None
        other = copy.copy(self)
        other.turns, other.originals, other.rendering, other._own = turns, originals, rendering, None
        return other

    def visible(self, at: int) -> int:
        """A position in the hidden rendering, outside sentinels, as one in the visible rendering."""
        passed = bisect.bisect_right(self._ends, at, key=lambda ends: ends[0])
        hidden, seen = self._ends[passed - 1] if passed else (0, 0)
        return seen + at - hidden

    def texts(self) -> list[Anchor]:
        """The sentinels of texts, where they stand in `text`."""
        shown = zip(self.rendering.anchors, self._ends, strict=True)
        return [
            Anchor(end - one.end + one.start, end, one.number, one.nth)
            for one, (_, end) in shown
            if one.number < len(self._contents)
        ]

    def original(self, number: int) -> Original | None:
        """What a sentinel stands for; None for one that is only tried."""
        return self.originals[number] if number < len(self.originals) else None

    def owner(self, number: int) -> int | None:
        """The message to which a sentinel belongs."""
        original = self.original(number)
        return None if original is None else original.message

    def own(self, index: int) -> list[Anchor]:
        """The sentinels of a message; of a call's name or id the first alone, as answers of tools may repeat it."""
        if self._own is None:
            self._own = {}
            for anchor in self.rendering.anchors:
                original = self.original(anchor.number)
                if original is not None and (anchor.nth == 0 or original.kind not in REPEATED):
                    self._own.setdefault(original.message, []).append(anchor)
        return self._own.get(index, [])

    def names(self, index: int) -> list[str]:
        """The names of the message's calls, as they are in the data."""
        return list(self._names[index])

    def hides(self, index: int, number: int) -> bool:
        """Whether anything of a call is hidden."""
        return any(one.message == index and one.call == number for one in self.originals)

    def hide_ids(self) -> bool:
        """Hide the ids of calls as well, where nothing else shows a call; False if they are, or cannot be."""
        if not self._with_ids:
            return False
        hidden = self._hide(*self._with_ids.pop())
        self._with_ids = []
        return hidden

    def probe(self, role: str, like: Message | None = None) -> Message:
        """A turn of this role that is only tried; a tool answers the last call of `like`."""
        words = self.sentinels.word(PROBED.get(role, 99_990))
        if role != "tool" or like is None or not like.tool_calls:
            return Message(role, words)
        call = like.tool_calls[-1]
        name = str(call.get("function", call).get("name", ""))
        return Message("tool", words, name=name, tool_call_id=call.get("id"))

    def _hide(self, kinds: Sequence[Kind], filled: Sequence[int], row: str | None = None) -> bool:
        """Hide these parts of calls, and let these messages without words end with one; False if others then differ."""
        if (kinds, filled) not in self._made:
            self._made[kinds, filled] = self._hidden(kinds, filled)
        turns, originals, rendering = self._made[kinds, filled]
        if rendering is None:
            return False
        count = len(self._contents)
        spelled = _spelled(rendering, self.text if row is None else row, originals, count if row is None else 0)
        if spelled is None:
            return False
        pieces: list[str] = []
        ends: list[tuple[int, int]] = []
        at = seen = 0
        for anchor, spelling in zip(rendering.anchors, spelled, strict=True):
            shown = rendering.text[anchor.start : anchor.end] if anchor.number < count else spelling
            pieces += (rendering.text[at : anchor.start], shown)
            at, seen = anchor.end, seen + anchor.start - at + len(shown)
            ends.append((at, seen))
        self.text = "".join((*pieces, rendering.text[at:]))
        self.turns, self.originals, self.rendering, self._ends, self._own = turns, originals, rendering, ends, None
        self._with_ids = [((*kinds, "id"), filled)]
        return True

    def _hidden(
        self, kinds: Sequence[Kind], filled: Sequence[int]
    ) -> tuple[list[Message], list[Original], Rendering | None]:
        originals = list(self._contents)
        ids: dict[str, Any] = {}

        def sentinel(index: int, number: int, kind: Kind, value: Any) -> Any:
            if kind not in kinds:
                return value
            originals.append(Original(index, kind, value.strip() if isinstance(value, str) else value, number))
            if isinstance(value, str):
                return value.replace(value.strip(), self.sentinels.word(len(originals) - 1), 1)
            return self.sentinels.figure(len(originals) - 1)

        hidden = []
        for i, turn in enumerate(self._given):
            if not turn.tool_calls and turn.tool_call_id is None and i not in filled:
                hidden.append(turn)
                continue
            calls = [_hidden_call(call, i, number, sentinel) for number, call in enumerate(turn.tool_calls)]
            ids |= {str(call.get("id")): new.get("id") for call, new in zip(turn.tool_calls, calls, strict=True)}
            answered = ids.get(turn.tool_call_id or "", turn.tool_call_id)
            same = not calls and answered == turn.tool_call_id
            hidden.append(turn if same else attrs.evolve(turn, tool_calls=calls, tool_call_id=answered))
            if i in filled:
                originals.append(Original(i, "content", ""))
                hidden[i] = ending_with(self.sentinels.word(len(originals) - 1), turn)
        return hidden, originals, self(hidden)


def _is_wordless(turn: Message) -> bool:
    """Whether a message holds nothing but white space and tags of thinking."""
    bare = isinstance(turn.content or "", str) and not _THINKING.sub("", str(turn.content or "")).strip()
    return bare and not (turn.tool_calls or turn.reasoning)


def ending_with(word: str, message: Message) -> Message:
    """The message with one more word in its content."""
    content: Any = message.content
    content = [*content, Part("text", word)] if isinstance(content, (list, tuple)) else f"{content or ''}{word}"
    return attrs.evolve(message, content=content)


def _hidden_call(call: Mapping[str, Any], index: int, number: int, sentinel: Callable[..., Any]) -> Mapping[str, Any]:
    function = dict(call.get("function", call))
    if isinstance(function.get("name"), str) and function["name"].strip():
        function["name"] = sentinel(index, number, "name", function["name"])
    if "arguments" in function:
        function["arguments"] = _hidden_value(
            function["arguments"], lambda value: sentinel(index, number, "argument", value)
        )
    hidden = {**call, "function": function} if "function" in call else function
    if isinstance(call.get("id"), str) and call["id"].strip():
        hidden["id"] = sentinel(index, number, "id", call["id"])
    return hidden


def _hidden_value(value: Any, sentinel: Callable[[Any], Any]) -> Any:
    if isinstance(value, str):
        return sentinel(value) if value.strip() else value
    if isinstance(value, (int, float)):
        return value if isinstance(value, bool) else sentinel(value)
    if isinstance(value, Mapping):
        return {key: _hidden_value(part, sentinel) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hidden_value(part, sentinel) for part in value]
    return value


def _spelled(rendering: Rendering, other: str, originals: Sequence[Original], shown: int) -> list[str] | None:
    """How another text spells what each sentinel stands for; None if the texts differ elsewhere.

    The first `shown` sentinels stand in the other text as they are.
    """
    found: list[str] = []
    text, anchors = rendering.text, rendering.anchors
    seen = anchors[0].start if anchors else len(text)
    if not other.startswith(text[:seen]):
        return None
    for anchor, following in itertools.zip_longest(anchors, anchors[1:]):
        literal = text[anchor.end : following.start if following else len(text)]
        original = originals[anchor.number]
        if anchor.number < shown:
            spellings: Iterable[str] = (text[anchor.start : anchor.end],)
        elif original.call is None:
            spellings = (str(original.value),)
        else:
            spellings = _spellings(original.value)
        for one in spellings:
            if other.startswith(one, seen) and other.startswith(literal, seen + len(one)):
                break
        else:
            return None
        seen += len(one) + len(literal)
        found.append(one)
    return found if seen == len(other) else None


def _spellings(value: str | int | float) -> Iterator[str]:
    """How templates print a value: as it is, as JSON, as JSON within JSON, or as Python does, the likeliest first."""
    yield value if isinstance(value, str) else json.dumps(value)
    if not isinstance(value, str):
        yield str(value)
        return
    as_json, in_ascii = (json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    yield from (as_json, in_ascii)
    nested = [
        json.dumps(one, ensure_ascii=ascii_only)[1:-1] for one in (as_json, in_ascii) for ascii_only in (False, True)
    ]
    yield from nested
    yield repr(value)[1:-1]
    for one in (value, as_json, in_ascii, *nested):
        yield one.replace("\\", "\\\\").replace("'", "\\'")
        yield one.replace("'", "\\'")
