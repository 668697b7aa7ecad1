"""Locates each assistant turn in a rendered conversation by comparing renderings, for any chat template.

A turn is what the model must produce, from what it is given to begin with through what ends it. Both are found by
comparison and not by looking for tokens: the beginning with the generation prompt of the same messages, the end with
renderings in which the turn is last and in which each kind of turn follows. All texts are hidden meanwhile (see
sftcore.chat.hidden). What a comparison showed is kept by what the template writes around the turn, so that turns of
other conversations which look the same need no renderings of their own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

import attrs
from attrs import define, field, frozen

from sftcore.chat.hidden import PROBED, Anchor, HiddenConversation, Rendering
from sftcore.chat.template import SpecialTexts, TemplateTraits
from sftcore.core.errors import RowError
from sftcore.core.types import Message

LEFT_OUT = "the chat template leaves its words out"

_KEPT_EDGES = 4096
"""How many results of comparisons are kept; data with calls have a few hundred."""


@frozen
class TurnSpan:
    """One stretch of an assistant message in the hidden rendering; tool results may split a message.

    `header` is what the template writes between the words before and the stretch. `ender` is what ends it, "" if
    nothing does.
    """

    message: int
    start: int
    end: int
    header: str = ""
    ender: str = ""


@frozen
class Ending:
    """Where a turn ends behind its last sentinel.

    `ender` is the text that ends it, "" if the template writes none; `plain` says that this is no token of the
    tokenizer. `stop` is the token to append.
    """

    length: int
    ender: str = ""
    plain: bool = False
    stop: str = ""


Edges: TypeAlias = "MutableMapping[Hashable, int | Ending]"
"""What comparisons have shown: where a turn begins, or how it ends, by what the template writes there."""


@define(slots=False)
class TurnFinder:
    """Finds the assistant's turns of one conversation in its hidden rendering.

    `stop` is the token that must be appended because the template ends the last turn without one, or "". `unended` says
    that nothing ends a turn before the last, `plain` that what ends one is no token. `compared` holds
    what was not among the known edges.
    """

    _talk: HiddenConversation
    _traits: TemplateTraits
    _special: SpecialTexts
    _edges: Edges
    _context: Hashable
    stop: str = field(default="", init=False)
    unended: bool = field(default=False, init=False)
    plain: bool = field(default=False, init=False)
    compared: dict[Hashable, int | Ending] = field(factory=dict, init=False)
    _silent: bool = field(default=False, init=False)
    _said: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._turns = self._talk.turns
        self._here = self._talk.rendering
        self._made: dict[Hashable, Rendering | None] = {}

    def find(self) -> tuple[TurnSpan, ...]:
        """All stretches of all assistant messages, in the order of the rendering.

        Raises:
            RowError: a part of a message is missing, or its turn cannot be told from what surrounds it.
        """
        found: list[TurnSpan] = []
        for index, message in enumerate(self._turns):
            if message.role == "assistant":
                found += self._message(index, message)
                self._said = max((turn.end for turn in found), default=0)
        found.sort(key=lambda turn: turn.start)
        for turn, following in zip(found, found[1:], strict=False):
            if following.start < turn.end:
                raise not_located(following.message, "its turn runs into another one")
        return tuple(found)

    def _message(self, index: int, message: Message) -> list[TurnSpan]:
        own = self._talk.own(index)
        self._silent = False
        self._refuse_calls_left_out(index, message, own)
        if not own:
            return self._wordless(index)
        found: list[TurnSpan] = []
        runs = self._runs(own)
        for run in runs:
            before = max((one.end for one in self._here.anchors if one.end <= run[0].start), default=0)
            gap = self._here.text[before : run[0].start]
            said = max(0, self._said - before)
            offset = self._begins(index, self._number_before(run[0]), gap, run[0].number, said, later=bool(found))
            upto = self._answered(index) if found else index + 1
            self._silent = len(runs) > 1 and not found
            ending = self._ends(index, run[-1].number, "", self._tail(run[-1].end), upto)
            end = run[-1].end + ending.length
            found.append(TurnSpan(index, before + offset, end, gap[:offset], ending.ender or ending.stop))
        return found

    def _refuse_calls_left_out(self, index: int, message: Message, own: Sequence[Anchor]) -> None:
        there = {self._talk.originals[anchor.number].call for anchor in own}
        for number, name in enumerate(self._talk.names(index)):
            if number not in there:
                if self._talk.hides(index, number):
                    raise refused(index, f'the chat template leaves its call of "{name}" out')
                raise not_located(index, f'its call of "{name}" cannot be located in what the chat template writes')

    def _runs(self, own: Sequence[Anchor]) -> list[list[Anchor]]:
        """The message's sentinels, in groups without one of another message between them."""
        runs: list[list[Anchor]] = []
        others = [one.start for one in self._here.anchors if self._talk.owner(one.number) != self._talk.owner(own[0].number)]
        for anchor in own:
            if runs and not any(runs[-1][-1].end <= other < anchor.start for other in others):
                runs[-1].append(anchor)
            else:
                runs.append([anchor])
        return runs

    def _wordless(self, index: int) -> list[TurnSpan]:
        """A turn without words or calls; nothing if the template leaves it out."""
        before = self._render(index, "prompt") or self._render(index, "before")
        if before is None:
            raise not_located(index, "its turn has no words, and where it begins cannot be told")
        number, _ = before.after_all()
        gap = self._here.behind(number)
        if gap is None:
            raise not_located(index, "its turn has no words, and where it begins cannot be told")
        without = self._talk([*self._turns[:index], *self._turns[index + 1 :]]) if len(self._turns) > 1 else None
        if without is not None and without.behind(number) == gap:
            return []
        at = self._position(number)
        offset = self._begins(index, number, gap, None, max(0, self._said - at), later=False)
        # what the template opens for words that are not there
        tried = [one for one in (self._plain(index, number, last) for last in (True, False)) if one is not None]
        opened = max([offset, *(len(self._special.common([gap, one])) for one in tried)])
        ending = self._ends(index, number, gap[:opened], gap[opened:], index + 1)
        end = at + opened + ending.length
        return [TurnSpan(index, at + offset, end, gap[:offset], ending.ender or ending.stop)]

    # --- Where a turn begins
    def _begins(self, index: int, before: int | None, gap: str, first: int | None, said: int, *, later: bool) -> int:
        """How much of the gap in front of a turn the model is given; `said` of it belongs to its own last turn."""
        # messages without words leave no sentinel, so that several may lie in one gap
        distance = index - (self._talk.owner(before) or 0 if before is not None else 0) if first is None else index == 0
        key = ("begins", gap, self._kind_of(before), self._kind(index, first), distance, said, later, self._context)
        if (known := self._known(key)) is not None:
            assert isinstance(known, int)
            return known
        offset = self._given_after_tools(index, before, gap) if later else self._given(index, before, gap, said)
        if offset is None:
            raise not_located(
                index,
                "where its turn begins cannot be told, because the generation prompt and the turn differ "
                f"({_shown(gap)} is written before it)",
            )
        return self._keep(key, offset)

    def _given(self, index: int, before: int | None, gap: str, said: int) -> int | None:
        given, closed = (self._written_after(self._render(index, how), before) for how in ("prompt", "before"))
        if given is None:
            return self._behind_header(gap)
        # where no generation prompt follows, the conversation may be closed
        unprompted = closed is not None and closed.startswith(given)
        if gap.startswith(given):
            offset = len(given)
            if not self._traits.header:
                return offset + self._usual(index, before, gap[offset:], gap[:offset])
            return offset + (self._header_at(gap, offset) if unprompted else 0)
        floor = max(said, 0 if closed is None else len(self._special.common([closed, gap]).rstrip()))
        return self._where_they_part(index, before, gap, given, floor, unprompted)

    def _where_they_part(
        self, index: int, before: int | None, gap: str, given: str, floor: int, unprompted: bool
    ) -> int | None:
        """The generation prompt opens more than the turn does: up to where other turns of the template part from it."""
        blank = floor + len(gap[floor:]) - len(gap[floor:].lstrip())
        if (ender := self._traits.next_end) and all(one.startswith(ender, blank) for one in (gap, given)):
            floor = blank + len(ender)
        tried = [one for one in (self._plain(index, before, last) for last in (True, False)) if one is not None]
        fitting = [
            cut
            for cut in self._cuts(given)
            if len(cut) >= floor and gap.startswith(cut) and all(one.startswith(cut) for one in tried)
        ]
        headed = [cut for cut in fitting if len(cut.rstrip()) > floor]
        trimmed = given.rstrip()
        stripped = gap.startswith(trimmed) and all(one.startswith(trimmed) for one in tried) and len(trimmed) > floor
        if stripped and (not headed or not gap[len(trimmed) :].strip()):
            return len(trimmed)
        if headed:
            return len(headed[0])
        # the prompt opens something in front of the header
        if not self._special.common([given, gap])[floor:].strip():
            at = floor + len(gap[floor:]) - len(gap[floor:].lstrip())
            for start in (side for token in self._special.tags.finditer(given) for side in token.span()):
                ending = given[start:]
                if ending.strip() and all(one.startswith(ending, at) for one in (gap, *tried)):
                    return at + len(ending)
            # the template closes what came before in another way, and prompts nothing
            bare = not gap[len(fitting[0]) :].strip() if fitting else False
            bare = bare or (bool(tried) and not any(one[floor:].strip() for one in tried))
            if fitting and (unprompted or bare):
                return len(fitting[0]) + self._header_at(gap, len(fitting[0]))
        return None

    def _header_at(self, gap: str, offset: int) -> int:
        """The length of the header there: some templates write the generation prompt behind a user's turn alone."""
        headers = (cut for cut in self._cuts(self._traits.header) if cut.strip())
        return next((len(cut) for cut in headers if gap.startswith(cut, offset)), 0)

    def _given_after_tools(self, index: int, before: int | None, gap: str) -> int | None:
        """Words of a message that the template writes behind the answers to its calls."""
        silent = Message("assistant", "", tool_calls=self._turns[index].tool_calls)
        asked = [*self._turns[:index], silent, *self._turns[index + 1 : self._answered(index)]]
        given = self._written_after(self._talk(asked, True), before)
        return len(given) if given is not None and gap.startswith(given) else None

    def _usual(self, index: int, before: int | None, rest: str, given: str) -> int:
        """The header of a template without generation prompts: what all turns of the assistant begin with."""
        shared = [rest]
        for last in (True, False):
            plain = self._plain(index, before, last)
            if plain is not None and plain.startswith(given):
                shared.append(plain[len(given) :])
        header = self._special.common(shared)
        return len(header) if any(one.isalnum() for one in header) else 0

    def _behind_header(self, gap: str) -> int | None:
        for cut in self._cuts(self._traits.header):
            if cut.strip() and gap.count(cut) == 1:
                return gap.find(cut) + len(cut)
        return None

    def _plain(self, index: int, before: int | None, last: bool) -> str | None:
        """What the template writes before a plain turn in this one's place, as the last one or inside."""
        rendering = self._render(index, "plain, last" if last else "plain")
        found = None if rendering is None else rendering.before(PROBED["assistant"])
        return found[1] if found is not None and found[0] == before else None

    def _cuts(self, given: str) -> list[str]:
        """A generation prompt, and what is left of it without what its last tokens open, the longest first."""
        starts = [token.start() for token in self._special.tags.finditer(given)]
        return [given, *(given[:start] for start in reversed(starts))]

    # --- Where a turn ends
    def _ends(self, index: int, number: int | None, extra: str, tail: str, upto: int) -> Ending:
        """How the turn ends behind a sentinel and `extra`; `tail` is what follows there up to the next sentinel."""
        following = self._turns[upto].role if upto < len(self._turns) else ""
        key = ("ends", tail, extra, self._kind_of(number), self._kind(index, number), following, self._context)
        if (known := self._known(key)) is None:
            known = self._keep(key, self._compared(index, number, extra, tail, upto))
        assert isinstance(known, Ending)
        if not following:
            self.stop = known.stop
        self.unended |= not (known.ender or known.stop) and following != "assistant"
        self.plain |= known.plain
        return known

    def _compared(self, index: int, number: int | None, extra: str, tail: str, upto: int) -> Ending:
        following = self._turns[upto].role if upto < len(self._turns) else ""
        if not following and self._here.after_all()[0] != number:
            raise not_located(index, "the chat template writes other words behind its last turn")
        roles = ["user", *(["tool"] if self._turns[index].tool_calls else []), *([following] if following else [])]
        followed = {role: self._tail_of(index, role, upto, number, extra) for role in roles}
        stopped = self._tail_of(index, "stopped", upto, number, extra)
        if stopped is None and not any(tried for role, tried in followed.items() if role != following):
            followed["assistant"] = self._tail_of(index, "assistant", upto, number, extra)
        tails = [one for one in (tail, stopped, *followed.values()) if one is not None]
        if following and len(tails) == 1:
            raise not_located(index, "where its turn ends cannot be told, because nothing else may follow it")
        common = self._special.common(tails)
        common = self._without_header(common, stopped is None)
        ender = self._traits.ender or self._special.eos
        for known in (ender, self._traits.next_end):
            if known and known in common:
                return Ending(common.find(known) + len(known), known)
        written = common.rstrip() or self._edge(index, number, tail)
        token = self._special.at_end(written)
        beyond = tail[len(written) :]
        if following and (same := followed.get(following)) is not None:
            beyond = self._special.common([tail, same])[len(written) :]
        found = self._special.first_of_any(beyond)
        if (plain := self._traits.plain_end) and (plain in common or beyond.lstrip().startswith(plain)):
            stop = "" if following else self._special.eos
            return Ending(len(tail) if stop else tail.find(plain) + len(plain), plain, True, stop)
        if ender := self._traits.next_end:
            if following and beyond.lstrip().startswith(ender):
                return Ending(len(written) + beyond.find(ender) + len(ender), ender)
            if not following and found is None and not self._traits.ends_answers:
                return Ending(len(tail), stop=ender)
            if not following and (last := self._traits.last_end) and beyond.lstrip().startswith(last):
                return Ending(len(written) + beyond.find(last) + len(last), last)
        # where answers have no end of their own, what closes a call is none either
        ends = self._traits.ends_answers or not self._turns[index].tool_calls
        if token and ends and not self._is_inside(index, number, extra, token):
            return Ending(len(written), token)
        plain = "" if token else written.strip()
        if plain and not self._is_inside(index, number, extra, plain):
            if found is None or beyond[: found.start()].strip() or self._special.like_a_tag(plain):
                stop = "" if following else self._special.eos
                return Ending(len(tail) if stop else len(written), plain, True, stop)
        if found is not None and found.group() == self._traits.ender:
            return Ending(len(written) + found.end(), found.group())
        if found is not None and following != "assistant" and not self._opens_the_assistants(beyond[found.start() :]):
            # where answers have an end of their own, a call without one has none
            if not (self._turns[index].tool_calls and self._traits.ender and found.group() != self._traits.ender):
                return Ending(len(written) + found.end(), found.group())
        if following:
            return Ending(len(written))
        return Ending(len(tail), "", False, self._traits.ender or self._stop(index, written, followed))

    def _without_header(self, common: str, always_followed: bool) -> str:
        """What is common to all turns that were tried, without that with which all next turns begin."""
        header = self._traits.header.removeprefix(self._traits.next_end).lstrip() if always_followed else ""
        begun = (header[:size].rstrip() for size in range(len(header), 0, -1))
        for opener in (*self._traits.openers, *begun):
            if opener and common.rstrip().endswith(opener):
                return common.rstrip().removesuffix(opener)
        return common

    def _edge(self, index: int, number: int | None, tail: str) -> str:
        """The white space at the end of the words themselves."""
        content = self._turns[index].content
        mine = number is not None and self._talk.owner(number) == index
        edge = content[len(content.rstrip()) if mine else 0 :] if isinstance(content, str) else ""
        return edge if tail.startswith(edge) and not edge.strip() else ""

    def _is_inside(self, index: int, number: int | None, extra: str, text: str) -> bool:
        """Whether a text that seems to end a turn stands inside it once it has another call, or words."""
        message = self._as_shown(index)
        if message.tool_calls:
            fuller, following = attrs.evolve(message, tool_calls=[*message.tool_calls, message.tool_calls[-1]]), number
        else:
            fuller = attrs.evolve(message, content=self._talk.sentinels.word(PROBED["assistant"]))
            following = PROBED["assistant"]
        rendering = self._talk([*self._turns[:index], fuller])
        anchors = () if rendering is None else rendering.anchors
        first = next((i for i, one in enumerate(anchors) if one.number == number), None)
        if rendering is None or (first is None and number is not None):
            return False
        start = 0 if first is None else anchors[first].end
        behind = anchors if first is None else anchors[first + 1 :]
        if not any(one.number == following for one in behind) or not rendering.text.startswith(extra, start):
            return False
        return text in rendering.text[start + len(extra) : behind[0].start]

    def _stop(self, index: int, written: str, followed: dict[str, str | None]) -> str:
        """What ends such a turn within a conversation: after calls, the token that introduces a tool's answer."""
        for role in ("tool", "user") if self._turns[index].tool_calls else ():
            beyond = (followed.get(role) or "")[len(written) :]
            found = self._special.first_of_any(beyond)
            if found is not None and not self._opens_the_assistants(beyond[found.start() :]):
                return found.group()
        return self._traits.stop

    def _opens_the_assistants(self, text: str) -> bool:
        header = self._traits.header.strip()
        return bool(header) and text.startswith(header)

    # --- Renderings
    def _render(self, index: int, how: str, upto: int = 0) -> Rendering | None:
        """The conversation before a message, or up to another one, with what is tried behind it; made once."""
        key = (index, how, upto, self._silent)
        if key not in self._made:
            turns, talk = self._turns[:index], self._talk
            if how in ("prompt", "before"):
                made = talk(turns, how == "prompt")
            elif how.startswith("plain"):
                made = talk([*turns, talk.probe("assistant"), *([] if how == "plain, last" else [talk.probe("user")])])
            else:
                behind = [] if how == "stopped" else [talk.probe(how, self._turns[index])]
                made = talk([*turns, self._as_shown(index), *self._turns[index + 1 : upto], *behind])
            self._made[key] = made
        return self._made[key]

    def _as_shown(self, index: int) -> Message:
        """A message without what the conversation does not show of it at this place."""
        message = self._turns[index]
        if self._silent:
            message = attrs.evolve(message, content="")
        shown = {self._talk.originals[one.number].kind for one in self._talk.own(index)}
        return message if "reasoning" in shown else attrs.evolve(message, reasoning=None)

    @staticmethod
    def _written_after(rendering: Rendering | None, number: int | None) -> str | None:
        """What a rendering ends with behind this sentinel; None if another one is its last."""
        if rendering is None:
            return None
        last, text = rendering.after_all()
        return text if last == number else None

    def _tail_of(self, index: int, how: str, upto: int, number: int | None, extra: str) -> str | None:
        """What is written behind a sentinel and `extra` in another rendering; None if other words of the turn are."""
        rendering = self._render(index, how, upto)
        if rendering is None:
            return None
        mine = [one.number for one in rendering.anchors if self._talk.owner(one.number) == index]
        if mine[-1:] != ([number] if (None if number is None else self._talk.owner(number)) == index else []):
            return None
        return rendering.behind(number, extra)

    def _tail(self, end: int) -> str:
        bound = min((one.start for one in self._here.anchors if one.start >= end), default=len(self._here.text))
        return self._here.text[end:bound]

    def _position(self, number: int | None) -> int:
        return max((one.end for one in self._here.anchors if one.number == number), default=0)

    def _number_before(self, anchor: Anchor) -> int | None:
        return next((one.number for one in reversed(self._here.anchors) if one.end <= anchor.start), None)

    # --- What edges are known by
    def _kind(self, index: int, number: int | None) -> Hashable:
        message = self._turns[index]
        original = self._talk.originals[number] if number is not None and number < len(self._talk.originals) else None
        mine = original.kind if original is not None and original.message == index else None
        after_user = all(turn.role != "user" for turn in self._turns[index + 1 :])
        return (bool(message.content), bool(message.reasoning), len(message.tool_calls), mine, after_user)

    def _kind_of(self, number: int | None) -> Hashable:
        if number is None or number >= len(self._talk.originals):
            return None
        original = self._talk.originals[number]
        return (self._turns[original.message].role, original.kind)

    def _answered(self, index: int) -> int:
        """The number of the first message behind the answers to a message's calls."""
        answered = index + 1
        while answered < len(self._turns) and self._turns[answered].role == "tool":
            answered += 1
        return answered

    def _known(self, key: Hashable) -> int | Ending | None:
        known = self._edges.get(key)
        return self.compared.get(key) if known is None else known

    def _keep(self, key: Hashable, value: Any) -> Any:
        self.compared[key] = value
        return value


def keep(edges: Edges, proven: Mapping[Hashable, int | Ending]) -> None:
    """Keep what comparisons have shown, once the conversation in which they did is proven."""
    if len(edges) + len(proven) > _KEPT_EDGES:
        edges.clear()
    edges.update(proven)


def refused(index: int, reason: str) -> RowError:
    """The error for an assistant message that cannot be supervised."""
    return RowError(
        f"message {index} (assistant) cannot be supervised: {reason}.",
        fix="Drop the row, or use another chat template.",
    )


class NotLocatedError(RowError):
    """A turn is there in full, but where it begins or ends cannot be told."""


def not_located(index: int, reason: str) -> NotLocatedError:
    """The error for a turn whose beginning or end cannot be told."""
    return NotLocatedError(f"message {index} (assistant) cannot be supervised: {reason}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"…{text[-60:]}")
