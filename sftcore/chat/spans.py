"""Locates each assistant turn in a rendered conversation, for chat templates without generation markers.

The conversation was rendered with a sentinel in place of each of its texts (see sftcore.chat.skeleton). A turn is what
the model must produce: from the end of the generation prompt through the token that ends the turn. Its header and its
end are read from what the template writes around the sentinels; the words of the data are never searched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import define, field, frozen

from sftcore.chat.template import SpecialTexts, TemplateTraits
from sftcore.core.errors import RowError
from sftcore.core.types import Message

LEFT_OUT = "the chat template leaves its words out"


@frozen
class Slot:
    """A sentinel in the rendering: its characters, the original text that it stands for, and that text's message."""

    start: int
    end: int
    original: int
    message: int
    reasoning: bool = False


@frozen
class TurnSpan:
    """One stretch of an assistant message in the rendering with sentinels; tool results may split a message."""

    message: int
    start: int
    end: int


Prefix = Callable[[int, bool], "tuple[str, Sequence[Slot]] | None"]
"""Renders the first n messages with sentinels, with or without the generation prompt; None if the template refuses."""

CallPositions = Mapping["tuple[int, int]", "tuple[int, int]"]
"""Where the name of each tool call is, by message and by the call's number within it."""


@define(slots=False)
class TurnFinder:
    """Finds the assistant's turns of one conversation in its rendering with sentinels.

    `stop` is the token that must be appended because the template ends the last turn without one, or "". `unended` says
    that a turn before the last has no end token.
    """

    _turns: Sequence[Message]
    _text: str
    _slots: Sequence[Slot]
    _prefix: Prefix
    _calls: CallPositions | None
    _traits: TemplateTraits
    _special: SpecialTexts
    _said: int = field(default=0, init=False)
    _open: bool = field(default=False, init=False)
    stop: str = field(default="", init=False)
    unended: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._anchors = [(slot.start, slot.end, slot.message) for slot in self._slots]
        self._anchors += [(start, end, index) for (index, _), (start, end) in (self._calls or {}).items()]

    def find(self) -> tuple[TurnSpan, ...]:
        """All stretches of all assistant messages, in the order of the rendering.

        Raises:
            RowError: words or calls of a message are missing; the error names the message and the reason.
        """
        found: list[TurnSpan] = []
        for index, message in enumerate(self._turns):
            if message.role == "assistant":
                found += self._message(index, message)
                self._said = max((turn.end for turn in found), default=0)
        return tuple(sorted(found, key=lambda turn: turn.start))

    def _message(self, index: int, message: Message) -> list[TurnSpan]:
        own = sorted((slot for slot in self._slots if slot.message == index), key=lambda slot: slot.start)
        first = min((start for start, _, owner in self._anchors if owner == index), default=len(self._text))
        # the template may move a system message in front of the turns that precede it
        anchored = first < len(self._text)
        earlier = [end for _, end, owner in self._anchors if end <= first and (owner < index or anchored)]
        before = max([*earlier, min(self._said, first)])
        if not own and not message.tool_calls:
            return self._wordless(index, before)
        found: list[TurnSpan] = []
        if message.tool_calls:
            bound = self._next(index, first if self._calls and anchored else before, later_only=True)
            inside = [slot for slot in own if slot.start < bound]
            found.append(self._calling(index, message, inside, before, bound))
            own = own[len(inside) :]
        for run in self._runs(own):
            if found:
                before = max(slot.end for slot in self._slots if slot.end <= run[0].start)
                start = self._behind(before, run[0].start)
            else:
                start = self._start(index, before, run[0].start) or 0
            found.append(TurnSpan(index, start, self._end(index, run[-1])))
        return found

    def _runs(self, own: Sequence[Slot]) -> list[list[Slot]]:
        """The message's slots, in groups without a slot of another message between them."""
        runs: list[list[Slot]] = []
        for slot in own:
            if runs and not any(runs[-1][-1].end <= other.start < slot.start for other in self._slots):
                runs[-1].append(slot)
            else:
                runs.append([slot])
        return runs

    def _wordless(self, index: int, before: int) -> list[TurnSpan]:
        """A turn without words or calls: its end token, or nothing if the template leaves the whole turn out."""
        bound = self._next(index, before)
        start = self._start(index, before, None, bound=bound)
        if start is None:
            return []
        end = self._known_end(start, bound)
        if end is None:
            end = self._written_end(index, start, bound)
        return [TurnSpan(index, start, end)]

    def _calling(self, index: int, message: Message, own: Sequence[Slot], before: int, bound: int) -> TurnSpan:
        known = [position[0] for (owner, _), position in (self._calls or {}).items() if owner == index]
        first = min([slot.start for slot in own] + known, default=None)
        start = self._start(index, before, first, bound=bound, words=bool(own))
        last = before if start is None else start
        for number, call in enumerate(message.tool_calls):
            position = self._call(index, number, call, last, bound)
            if position is None:
                raise refused(index, f'the chat template leaves its call of "{_name(call)}" out')
            if start is None:
                start = self._before_call(before, position[0])
            last = position[1]
        last = max([last, *(slot.end for slot in own)])
        assert start is not None
        marked = any(slot.message == index + 1 for slot in self._slots) or index + 1 == len(self._turns)
        end = self._known_end(last, bound) if marked else None
        return TurnSpan(index, start, self._written_end(index, last, bound) if end is None else end)

    def _call(self, index: int, number: int, call: Mapping[str, Any], last: int, bound: int) -> tuple[int, int] | None:
        """Where the name of the call is."""
        if self._calls is not None:
            return self._calls.get((index, number))
        name = _name(call)
        at = self._text.find(name, last, bound)
        return (at, at + len(name)) if at >= 0 else None

    # --- Starts
    def _start(self, index: int, before: int, first: int | None, *, bound: int = 0, words: bool = True) -> int | None:
        """The end of the generation prompt, or else of the last special token before the words.

        If neither words nor calls are known (`first` is None), it is the next generation prompt before `bound`, or None
        if there is none. `words` is false if a call comes first.
        """
        header = self._traits.header
        gap_end = bound if first is None else first
        gap = self._text[before:gap_end]
        if header and (gap.count(header) == 1 or (first is not None and gap.endswith(header))):
            return before + gap.rfind(header) + len(header)
        if (prompted := self._prompted(index, before, gap_end)) is not None:
            return prompted
        for shorter in _shortened(header):
            at = gap.find(shorter) if first is None else gap.rfind(shorter)
            if at >= 0:
                return before + at + len(shorter)
        if first is None:
            return None
        shared = _shared_start(gap[::-1], header[::-1])[::-1]
        if self._special.first(shared, 0, len(shared)):
            return first
        return self._behind(before, first) if words else self._before_call(before, first)

    def _prompted(self, index: int, before: int, gap_end: int) -> int | None:
        """The end of what the template writes to prompt this turn, if the rendering contains it."""
        if (rendered := self._prefix(index, True)) is None:
            return None
        text, slots = rendered
        tail = text[slots[-1].end :] if slots else text
        if not self._traits.header and not self._special.first(tail, 0, len(tail)):
            return None
        if before <= len(text) <= gap_end and self._text.startswith(text):
            return len(text)
        if not slots or all(slot.end != before or slot.original != slots[-1].original for slot in self._slots):
            return None
        for shorter in _shortened(tail):
            if shorter and before + len(shorter) <= gap_end and self._text.startswith(shorter, before):
                return before + len(shorter)
        return None

    def _behind(self, before: int, first: int) -> int:
        end = self._special.last_end(self._text, before, first)
        if end is None:
            # between two merged turns of the assistant, the template writes what the model would have to write
            return before if self._open and before == self._said else first
        return end

    def _before_call(self, before: int, first: int) -> int:
        """The end of what closed the text before; special tokens from there to the call's name belong to the call."""
        token = self._special.first(self._text, before, first)
        return before if before == self._said or token is None else token.end()

    # --- Ends
    def _end(self, index: int, words: Slot) -> int:
        """The end of the first special token after the words, and of an EOS that follows it immediately."""
        last = words.end
        bound = self._next(index, last)
        self._open = False
        if words.reasoning:
            # an answer without words may still have a frame of its own (gpt-oss)
            return self._written_end(index, last, bound)
        token = self._special.first(self._text, last, bound)
        header = self._traits.header.strip()
        # a token that opens the assistant's next turn does not end this one
        if token and not (header and self._text.startswith(header, token.start())):
            return self._special.with_eos(self._text, token.end())
        return self._without_end(index, last, bound)

    def _known_end(self, last: int, bound: int) -> int | None:
        """The end of the next token that is known to end a plain turn."""
        found = [
            (at, at + len(ender)) for ender in self._traits.enders if (at := self._text.find(ender, last, bound)) >= 0
        ]
        return self._special.with_eos(self._text, min(found)[1]) if found else None

    def _written_end(self, index: int, last: int, bound: int) -> int:
        """The end of a turn of calls, or of one without words, whose markup may contain special tokens of its own.

        It is the last special token that the template writes when the conversation stops after this turn; or if the
        conversation goes on, the first one after that (GLM-4 ends turns with the header of the next).
        """
        tail = self._stopped(index, last)
        shared = _shared_start(tail, self._text[last:bound])
        tokens = list(self._special.pattern.finditer(shared))
        if tokens and not tail[len(shared) :].strip():
            return last + tokens[-1].end()
        following = last + (tokens[-1].end() if tokens else 0)
        if token := self._special.first(self._text, following, bound):
            return self._special.with_eos(self._text, token.end())
        if (added := self._special.last_end(shared, 0, len(shared))) is not None and bound < len(self._text):
            return last + added
        return self._without_end(index, last + len(shared.rstrip()), bound)

    def _stopped(self, index: int, last: int) -> str:
        """What follows `last` when the conversation is rendered up to this message."""
        if index + 1 == len(self._turns):
            return self._text[last:]
        if (rendered := self._prefix(index + 1, False)) is None:
            return ""
        text, slots = rendered
        if text.startswith(self._text[:last]):
            return text[last:]
        at = slots[-1].end if slots else 0
        if self._traits.header:
            at = max(at, text.rfind(self._traits.header) + len(self._traits.header))
        for call in self._turns[index].tool_calls:
            at = max(at, text.find(_name(call), at) + len(_name(call)))
        return text[at:]

    def _without_end(self, index: int, last: int, bound: int) -> int:
        if bound == len(self._text) and index + 1 == len(self._turns):
            self.stop = self._stop_token(index)
            self.unended |= not self.stop
            return len(self._text)
        following = [owner for start, _, owner in self._anchors if start == bound]
        self._open = bool(following) and self._turns[following[0]].role == "assistant"
        self.unended |= not self._open
        return last

    def _stop_token(self, index: int) -> str:
        """What ends such a turn within a conversation: after calls, the token that introduces a tool's answer."""
        if self._turns[index].tool_calls and (rendered := self._prefix(index + 2, False)) is not None:
            text, _ = rendered
            if text.startswith(self._text) and (token := self._special.first(text, len(self._text), len(text))):
                return token.group()
        return self._traits.stop

    def _next(self, index: int, start: int, *, later_only: bool = False) -> int:
        """Where the next text or call of another message begins."""
        return min(
            (at for at, _, owner in self._anchors if at >= start and (owner > index if later_only else owner != index)),
            default=len(self._text),
        )


def refused(index: int, reason: str) -> RowError:
    """The error for an assistant message that cannot be supervised."""
    return RowError(
        f"message {index} (assistant) cannot be supervised: {reason}.",
        fix="Drop the row, or use another chat template.",
    )


def _shortened(prompt: str) -> list[str]:
    """The whole generation prompt, then the prompt without the tag that opens the thinking of the newest turn."""
    bare = prompt.split("<think>")[0]
    return [prompt, *([bare] if bare != prompt else [])] if prompt else []


def _shared_start(one: str, other: str) -> str:
    differing = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(differing, min(len(one), len(other)))]


def _name(call: Mapping[str, Any]) -> str:
    return str(call.get("function", call).get("name", ""))
