"""Where each assistant turn stands in a rendered conversation, for chat templates without generation markers.

The conversation was rendered with a sentinel in place of each of its texts (see sftcore.chat.skeleton). A turn is what
the model must produce: from behind the generation prompt to the token that ends the turn. Its header and its end are
read from what the template itself writes around the sentinels; words of the data are not searched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen

from sftcore.chat.template import Habits, SpecialTexts
from sftcore.core.errors import RowError
from sftcore.core.types import Message

LEFT_OUT = "the chat template leaves its words out"


@frozen
class Hole:
    """A sentinel in the rendering: at which characters, for which of the originals, of which message."""

    start: int
    end: int
    original: int
    message: int
    reasoning: bool = False


@frozen
class Turn:
    """One stretch of an assistant message, in characters of the sentinel rendering; tool results may part a message."""

    message: int
    start: int
    end: int


Prefix = Callable[[int, bool], "tuple[str, Sequence[Hole]] | None"]
"""The sentinel rendering of the first n messages, with or without generation prompt; None where that is refused."""

CallPlaces = Mapping["tuple[int, int]", "tuple[int, int]"]
"""Where the name of each call stands: by message, and by number within it."""


class TurnFinder:
    """Finds the assistant's turns of one conversation in its sentinel rendering.

    `stop` is the token that must be appended since the template gives the last turn none, else "". `unended` says that
    a turn inside has no end token.
    """

    def __init__(
        self,
        turns: Sequence[Message],
        text: str,
        holes: Sequence[Hole],
        prefix: Prefix,
        calls: CallPlaces | None,
        habits: Habits,
        special: SpecialTexts,
    ) -> None:
        self._turns, self._text, self._holes, self._calls = turns, text, holes, calls
        self._prefix, self._habits, self._special = prefix, habits, special
        self._anchors = [(hole.start, hole.end, hole.message) for hole in holes]
        self._anchors += [(start, end, index) for (index, _), (start, end) in (calls or {}).items()]
        self._said = 0
        self._open = False
        self.stop = ""
        self.unended = False

    def find(self) -> tuple[Turn, ...]:
        """All stretches of all assistant messages, in the order of the rendering.

        Raises:
            RowError: a message's words or calls are not there; with its index and the reason.
        """
        found: list[Turn] = []
        for index, message in enumerate(self._turns):
            if message.role == "assistant":
                found += self._message(index, message)
                self._said = max((turn.end for turn in found), default=0)
        return tuple(sorted(found, key=lambda turn: turn.start))

    def _message(self, index: int, message: Message) -> list[Turn]:
        own = sorted((hole for hole in self._holes if hole.message == index), key=lambda hole: hole.start)
        first = min((start for start, _, owner in self._anchors if owner == index), default=len(self._text))
        # a system message may stand before the turns that precede it
        anchored = first < len(self._text)
        earlier = [end for _, end, owner in self._anchors if end <= first and (owner < index or anchored)]
        before = max([*earlier, min(self._said, first)])
        if not own and not message.tool_calls:
            return self._wordless(index, before)
        found: list[Turn] = []
        if message.tool_calls:
            bound = self._next(index, first if self._calls and anchored else before, later_only=True)
            inside = [hole for hole in own if hole.start < bound]
            found.append(self._calling(index, message, inside, before, bound))
            own = own[len(inside) :]
        for run in self._runs(own):
            if found:
                before = max(hole.end for hole in self._holes if hole.end <= run[0].start)
                start = self._behind(before, run[0].start)
            else:
                start = self._start(index, before, run[0].start) or 0
            found.append(Turn(index, start, self._end(index, run[-1])))
        return found

    def _runs(self, own: Sequence[Hole]) -> list[list[Hole]]:
        """The message's holes, parted where one of another message stands between."""
        runs: list[list[Hole]] = []
        for hole in own:
            if runs and not any(runs[-1][-1].end <= other.start < hole.start for other in self._holes):
                runs[-1].append(hole)
            else:
                runs.append([hole])
        return runs

    def _wordless(self, index: int, before: int) -> list[Turn]:
        """A turn without words or calls: its end token, or nothing where the template leaves it out whole."""
        bound = self._next(index, before)
        start = self._start(index, before, None, bound=bound)
        if start is None:
            return []
        end = self._known_end(start, bound)
        if end is None:
            end = self._written_end(index, start, bound)
        return [Turn(index, start, end)]

    def _calling(self, index: int, message: Message, own: Sequence[Hole], before: int, bound: int) -> Turn:
        known = [place[0] for (owner, _), place in (self._calls or {}).items() if owner == index]
        first = min([hole.start for hole in own] + known, default=None)
        start = self._start(index, before, first, bound=bound, words=bool(own))
        last = before if start is None else start
        for number, call in enumerate(message.tool_calls):
            place = self._call(index, number, call, last, bound)
            if place is None:
                raise refused(index, f'the chat template leaves its call of "{_name(call)}" out')
            if start is None:
                start = self._before_call(before, place[0])
            last = place[1]
        last = max([last, *(hole.end for hole in own)])
        assert start is not None
        marked = any(hole.message == index + 1 for hole in self._holes) or index + 1 == len(self._turns)
        end = self._known_end(last, bound) if marked else None
        return Turn(index, start, self._written_end(index, last, bound) if end is None else end)

    def _call(self, index: int, number: int, call: Mapping[str, Any], last: int, bound: int) -> tuple[int, int] | None:
        """Where the call's name stands."""
        if self._calls is not None:
            return self._calls.get((index, number))
        name = _name(call)
        at = self._text.find(name, last, bound)
        return (at, at + len(name)) if at >= 0 else None

    # --- Starts
    def _start(self, index: int, before: int, first: int | None, *, bound: int = 0, words: bool = True) -> int | None:
        """Behind the generation prompt; else behind the last special token before the words.

        Where neither words nor calls are known (`first` None) it is the next generation prompt before `bound`, and
        None where there is none. `words` false says that a call comes first.
        """
        header = self._habits.header
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
        """Behind what the template writes to prompt this very turn, where the rendering has that."""
        if (rendered := self._prefix(index, True)) is None:
            return None
        text, holes = rendered
        tail = text[holes[-1].end :] if holes else text
        if not self._habits.header and not self._special.first(tail, 0, len(tail)):
            return None
        if before <= len(text) <= gap_end and self._text.startswith(text):
            return len(text)
        if not holes or all(hole.end != before or hole.original != holes[-1].original for hole in self._holes):
            return None
        for shorter in _shortened(tail):
            if shorter and before + len(shorter) <= gap_end and self._text.startswith(shorter, before):
                return before + len(shorter)
        return None

    def _behind(self, before: int, first: int) -> int:
        end = self._special.last_end(self._text, before, first)
        if end is None:
            # a template that merges two turns of the assistant writes what stands between them as the model would
            return before if self._open and before == self._said else first
        return end

    def _before_call(self, before: int, first: int) -> int:
        """Behind what ended the text before; special tokens between that and the call's name belong to the call."""
        token = self._special.first(self._text, before, first)
        return before if before == self._said or token is None else token.end()

    # --- Ends
    def _end(self, index: int, words: Hole) -> int:
        """Behind the first special token after the words, and behind the EOS where that follows at once."""
        last = words.end
        bound = self._next(index, last)
        self._open = False
        if words.reasoning:
            # an answer without words may still have a frame of its own (gpt-oss)
            return self._written_end(index, last, bound)
        token = self._special.first(self._text, last, bound)
        header = self._habits.header.strip()
        # one that opens the assistant's next turn ends nothing
        if token and not (header and self._text.startswith(header, token.start())):
            return self._special.with_eos(self._text, token.end())
        return self._without_end(index, last, bound)

    def _known_end(self, last: int, bound: int) -> int | None:
        """Behind the next token that was seen to end a plain turn."""
        found = [
            (at, at + len(ender)) for ender in self._habits.enders if (at := self._text.find(ender, last, bound)) >= 0
        ]
        return self._special.with_eos(self._text, min(found)[1]) if found else None

    def _written_end(self, index: int, last: int, bound: int) -> int:
        """The end of a turn of calls, or of one without words, whose markup may hold special tokens of its own.

        It is the last special token that the template writes when the conversation stops with this turn, or the first
        that follows that where it goes on (GLM-4 ends turns with the next one's header).
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
        """What follows `last` in the rendering of the conversation up to this message."""
        if index + 1 == len(self._turns):
            return self._text[last:]
        if (rendered := self._prefix(index + 1, False)) is None:
            return ""
        text, holes = rendered
        if text.startswith(self._text[:last]):
            return text[last:]
        at = holes[-1].end if holes else 0
        if self._habits.header:
            at = max(at, text.rfind(self._habits.header) + len(self._habits.header))
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
        """What ends such a turn inside a conversation: behind calls that is what leads to a tool's answer."""
        if self._turns[index].tool_calls and (rendered := self._prefix(index + 2, False)) is not None:
            text, _ = rendered
            if text.startswith(self._text) and (token := self._special.first(text, len(self._text), len(text))):
                return token.group()
        return self._habits.stop

    def _next(self, index: int, start: int, *, later_only: bool = False) -> int:
        """Where the next text or call of another message stands."""
        return min(
            (at for at, _, owner in self._anchors if at >= start and (owner > index if later_only else owner != index)),
            default=len(self._text),
        )


def refused(index: int, reason: str) -> RowError:
    """The refusal of an assistant message."""
    return RowError(
        f"message {index} (assistant) cannot be supervised: {reason}.",
        fix="Drop the row, or use another chat template.",
    )


def _shortened(prompt: str) -> list[str]:
    """A generation prompt whole, then without what only opens the thinking of the newest turn."""
    bare = prompt.split("<think>")[0]
    return [prompt, *([bare] if bare != prompt else [])] if prompt else []


def _shared_start(one: str, other: str) -> str:
    differing = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(differing, min(len(one), len(other)))]


def _name(call: Mapping[str, Any]) -> str:
    return str(call.get("function", call).get("name", ""))
