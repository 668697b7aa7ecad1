"""Judges generation markers by the turns that were found and proven without them.

A marker may enclose turns of the assistant, the header before a turn (which only teaches what is given anyway) and the
white space and tokens with which the template closes it. The end of a turn may be left out, and is supervised all the
same. Whole turns may be left out, too: some templates mark the last one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from attrs import define, frozen

from sftcore.chat.hidden import Anchor, HiddenConversation
from sftcore.chat.spans import TurnSpan
from sftcore.chat.template import SpecialTexts, TemplateTraits
from sftcore.core.errors import RowError
from sftcore.core.types import Message

HEADERS_ENCLOSED = "the chat template's generation markers enclose what stands before the assistant's turns, too"
TURNS_LEFT_OUT = "the chat template's generation markers leave out whole turns of the assistant"

Stretch: TypeAlias = tuple[int, int]
RenderMarked: TypeAlias = Callable[[Sequence[Message]], "tuple[str, Sequence[Stretch]]"]
"""Renders messages with what the template's generation markers enclose."""


class MarkersError(RowError):
    """The chat template's generation markers enclose something foreign, or leave out something of a turn."""


def encloses(what: str) -> MarkersError:
    """The error for markers that enclose what the assistant does not write."""
    return MarkersError(
        f"the chat template's generation markers enclose {what}.",
        fix="Put them around what the assistant writes alone, or remove them from the template.",
    )


def leaves_out(what: str) -> MarkersError:
    """The error for markers that leave out what the assistant writes."""
    return MarkersError(
        f"the chat template's generation markers leave out {what}.",
        fix="Put them around all that the assistant writes in a turn, through the token that ends it, or remove them.",
    )


@frozen
class Proven:
    """Markers that enclose nothing foreign, as characters of the hidden rendering.

    marks: what they enclose. ends: the ends of turns that they leave out. notes: what else they enclose or leave out.
    """

    marks: tuple[Stretch, ...]
    ends: tuple[Stretch, ...]
    notes: tuple[str, ...]


def proven_marks(
    talk: HiddenConversation,
    found: Sequence[TurnSpan],
    render_marked: RenderMarked,
    traits: TemplateTraits,
    special: SpecialTexts,
    *,
    stops: bool,
) -> Proven | None:
    """What the template's generation markers enclose; `stops` says that a token is to be appended to the last turn.

    None if the template renders another text with them.

    Raises:
        MarkersError: they enclose something foreign, or leave out something of a turn that they mark.
    """
    text, marks = render_marked(talk.turns)
    if text != talk.rendering.text:
        return None
    return _Judgement(talk, found, marks, traits, special).judge(stops=stops)


def merged(marks: Sequence[Stretch]) -> list[Stretch]:
    """What markers enclose, without empty ones; those that touch are one."""
    found: list[Stretch] = []
    for start, end in sorted(mark for mark in marks if mark[0] < mark[1]):
        if found and found[-1][1] >= start:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


@define(slots=False)
class _Judgement:
    _talk: HiddenConversation
    _found: Sequence[TurnSpan]
    _all: Sequence[Stretch]
    _traits: TemplateTraits
    _special: SpecialTexts

    def __attrs_post_init__(self) -> None:
        self._text = self._talk.rendering.text
        self._marks = merged(self._all)
        traits = self._traits
        self._enders = {traits.ender, traits.next_end, traits.last_end, traits.plain_end, self._special.eos} - {""}

    def judge(self, *, stops: bool) -> Proven:
        self._refuse_words_of_others()
        headed = [self._refuse_foreign(*stretch) for mark in self._marks for stretch in self._outside(*mark)]
        ends = {turn: self._end_left_out(turn, stops=stops) for turn in self._found}
        skipped = [turn for turn, end in ends.items() if end is None and not self._within(turn)]
        if self._all and skipped and len(skipped) == len(ends):
            raise leaves_out("all that the assistant writes")
        left_out = any(self._text[turn.start : turn.end].strip() for turn in skipped)
        notes = (HEADERS_ENCLOSED if any(headed) else "", TURNS_LEFT_OUT if left_out else "")
        marks = tuple((start, end) for start, end in self._all if start < end)
        return Proven(marks, tuple(end for end in ends.values() if end is not None), tuple(filter(None, notes)))

    # --- What stands in markers, but in no turn
    def _refuse_words_of_others(self) -> None:
        for anchor in self._talk.rendering.anchors:
            owner = self._talk.owner(anchor.number)
            role = "assistant" if owner is None else self._talk.turns[owner].role
            if role != "assistant" and any(start < anchor.end and anchor.start < end for start, end in self._marks):
                raise encloses(f"words of message {owner} ({role})")

    def _outside(self, start: int, end: int) -> Iterator[tuple[int, int, TurnSpan | None, TurnSpan | None]]:
        """What a marker encloses outside turns, with the turns that end and begin there within it."""
        before: TurnSpan | None = None
        at = start
        for turn in self._found:
            if start < turn.end and (turn.start < end or (turn.start == end and not self._own(turn))):
                if at < turn.start:
                    yield at, turn.start, before, turn
                at, before = max(at, turn.end), turn
        if at < end:
            yield at, end, before, None

    def _refuse_foreign(self, start: int, end: int, before: TurnSpan | None, after: TurnSpan | None) -> bool:
        """Raise if what is enclosed there belongs to no turn; whether it is a header."""
        header = end if after is None else min(max(self._header(after), start), end)
        closing = self._text[start:header]
        if after is not None and closing.strip() and before is None and self._special.only_tags(closing):
            header, closing = start, ""  # DeepSeek closes the outputs of tools where it answers them
        if closing.strip() and (before is None or not self._closes(before, closing)):
            raise encloses(f"{shown(closing)}, which the assistant does not write")
        given = self._text[header:end]
        if any(ender in given for ender in self._enders):
            raise encloses(f"{shown(given)}, which ends the message before the assistant's")
        return bool(given.strip())

    def _header(self, turn: TurnSpan) -> int:
        """Where what the template writes for a turn begins: behind the messages before it, on their own."""
        before = self._talk(self._talk.turns[: turn.message]) if turn.message else None
        at, number = _last([one for one in self._talk.rendering.anchors if one.end <= turn.start])
        closed, same = _last(before.anchors) if before is not None else (0, None)
        if before is None or number != same:
            header = self._traits.header.lstrip()
            return turn.start - len(header) if self._text.endswith(header, 0, turn.start) else turn.start
        return at + len(self._special.common([self._text[at : turn.start], before.text[closed:]]))

    def _closes(self, turn: TurnSpan, text: str) -> bool:
        """Whether it is tokens that the template writes behind a turn, whether or not another message follows."""
        opened = any(opener in text for opener in self._traits.openers)
        if opened or not self._special.only_tags(text) or turn.message == len(self._talk.turns) - 1:
            return not opened and self._special.only_tags(text)
        own = self._own(turn)
        through = self._talk(self._talk.turns[: turn.message + 1]) if own else None
        if through is None or (last := _last(through.anchors))[1] != own[-1].number:
            return False
        return through.text.startswith(self._text[own[-1].end : turn.end] + text.rstrip(), last[0])

    # --- What stands in turns, but in no markers
    def _own(self, turn: TurnSpan) -> list[Anchor]:
        """The sentinels of words in a turn; one that stands for no words says nothing here."""
        within = (one for one in self._talk.own(turn.message) if turn.start <= one.start < turn.end)
        return [one for one in within if self._talk.originals[one.number].value != ""]

    def _within(self, turn: TurnSpan) -> list[Stretch]:
        return [(start, end) for start, end in self._marks if start < turn.end and turn.start < end]

    def _end_left_out(self, turn: TurnSpan, *, stops: bool) -> Stretch | None:
        """The end of a turn that is in no marker; raise if anything else of the turn is in none."""
        own = self._own(turn)
        marks = self._within(turn)
        empty = [
            end for start, end in self._all if turn.start <= end <= turn.end and (start == end or end == turn.start)
        ]
        if not marks and not empty:
            return None
        if not marks and own:
            raise leaves_out(f"words of message {turn.message} (assistant)")
        said = own[-1].end if own else turn.start
        at = turn.start if marks else empty[0]
        for start, end in [*marks, (turn.end, turn.end)]:
            hole = self._text[at:start]
            if any(one.start < start and at < one.end for one in own):
                raise leaves_out(f"words of message {turn.message} (assistant)")
            if hole.strip() and at >= said and start == turn.end:
                return at, turn.end
            if hole.strip():
                raise leaves_out(f"{shown(hole)} of message {turn.message} (assistant)")
            at = max(at, end)
        start, end = marks[-1] if marks else (at, at)
        if stops and turn.end == len(self._text) and not self._special.at_end(self._text[start:end].rstrip()):
            return end, turn.end
        return None


def _last(anchors: Sequence[Anchor]) -> tuple[int, int | None]:
    """Where the last of these sentinels ends, and its number."""
    return (anchors[-1].end, anchors[-1].number) if anchors else (0, None)


def shown(text: str) -> str:
    """A text as errors quote it."""
    return repr(text if len(text) <= 60 else f"{text[:30]}…{text[-30:]}")
