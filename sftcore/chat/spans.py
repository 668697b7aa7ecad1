"""Locates each assistant turn in a rendered conversation by comparing renderings, for any chat template.

A turn is what the model must produce, from what it is given to begin with through what ends it. Both are found by
comparison and not by looking for tokens: the beginning with the generation prompt of the same messages, the end with
renderings in which the turn is last and in which each kind of turn follows. All texts are hidden meanwhile (see
sftcore.chat.hidden). What a comparison showed is kept by what the template writes around the turn, so that turns of
other conversations which look the same need no renderings of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import attrs
from attrs import define, frozen

from sftcore.chat.comparisons import Comparisons, not_located, refused
from sftcore.chat.hidden import Anchor
from sftcore.core.types import Message

LEFT_OUT = "the chat template leaves its words out"


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


class _UnseenCallError(Exception):
    """A call leaves no sentinel, but its id may."""


@define(slots=False)
class TurnFinder(Comparisons):
    """Finds the assistant's turns of one conversation in its hidden rendering."""

    def find(self) -> tuple[TurnSpan, ...]:
        """All stretches of all assistant messages, in the order of the rendering.

        Raises:
            RowError: a part of a message is missing, or its turn cannot be told from what surrounds it.
        """
        try:
            return self._all()
        except _UnseenCallError:
            self.__attrs_post_init__()
            return self._all()

    def _all(self) -> tuple[TurnSpan, ...]:
        found: list[TurnSpan] = []
        self._said = 0
        for index, message in enumerate(self._turns):
            if message.role == "assistant":
                found += self._message(index, message)
                self._said = max((turn.end for turn in found), default=0)
        found.sort(key=lambda turn: turn.start)
        for turn, following in itertools.pairwise(found):
            if following.start < turn.end:
                raise not_located(following.message, "its turn runs into another one")
        return tuple(found)

    def _message(self, index: int, message: Message) -> list[TurnSpan]:
        own = self._talk.own(index)
        runs: list[tuple[Anchor, Anchor, int]] = []
        seen: set[int | None] = set()
        tried = self._runs(own)
        for number, run in enumerate(tried):
            upto = self._answered(index) if number else index + 1
            self._silent = len(tried) > 1 and not number
            last = self._last_of(index, run, upto)
            if last is not None:
                runs.append((run[0], last, upto))
                seen |= {self._talk.originals[anchor.number].call for anchor in run if anchor.start <= last.start}
        self._silent = False
        self._refuse_calls_left_out(index, seen)
        if not runs:
            return self._wordless(index)
        found: list[TurnSpan] = []
        for first, last, upto in runs:
            before = self._before(first)
            at = before.end if before else 0
            gap = self._here.text[at : first.start]
            offset = self._begins(index, before, gap, first, max(0, self._said - at), later=bool(found))
            self._silent = len(runs) > 1 and not found
            ending = self._ends(index, last, self._tail(last), upto)
            end = last.end + ending.length
            found.append(TurnSpan(index, at + offset, end, gap[:offset], ending.ender or ending.stop))
        return found

    def _refuse_calls_left_out(self, index: int, seen: Collection[int | None]) -> None:
        for number, name in enumerate(self._talk.names(index)):
            if number not in seen:
                if self._talk.hide_ids():
                    raise _UnseenCallError
                if self._talk.hides(index, number) and self._is_left_out(index, number):
                    raise refused(index, f'the chat template leaves its call of "{name}" out')
                raise not_located(index, f'its call of "{name}" cannot be located in what the chat template writes')

    def _is_left_out(self, index: int, call: int) -> bool:
        return all(self._talk.originals[anchor.number].call != call for anchor in self._talk.own(index))

    def _runs(self, own: Sequence[Anchor]) -> list[list[Anchor]]:
        """The message's sentinels, in groups without one of another message between them.

        Names alone behind the first group are those in the answers of tools.
        """
        runs: list[list[Anchor]] = []
        owner = self._talk.owner(own[0].number) if own else None
        for anchor in own:
            last = self._places[runs[-1][-1].start] if runs else -1
            between = self._here.anchors[last + 1 : self._places[anchor.start]]
            if runs and all(self._talk.owner(one.number) == owner for one in between):
                runs[-1].append(anchor)
            else:
                runs.append([anchor])
        return [run for i, run in enumerate(runs) if i == 0 or not all(map(self._is_repeated, run))]

    def _wordless(self, index: int) -> list[TurnSpan]:
        """A turn without words or calls; nothing if the template leaves it out."""
        before = self._render(index, "prompt") or self._render(index, "before")
        if before is None:
            raise not_located(index, "its turn has no words, and where it begins cannot be told")
        last, _ = before.after_all()
        gap = self._here.behind(last)
        if gap is None:
            raise not_located(index, "its turn has no words, and where it begins cannot be told")
        without = self._talk([*self._turns[:index], *self._turns[index + 1 :]]) if len(self._turns) > 1 else None
        if without is not None and without.behind(last) == gap:
            return []
        found = self._as_with_words(index, last, gap)
        if found is None:
            raise not_located(index, "its turn has no words, and where it ends cannot be told")
        return [found]

    def _as_with_words(self, index: int, last: Anchor | None, gap: str) -> TurnSpan | None:
        """The turn as it is located once it ends with words, without them; None if the template then writes more."""
        filled = self._talk.with_words(index)
        if filled is None or not filled.own(index):
            return None
        word = filled.own(index)[-1]
        at = 0 if last is None else self._here.anchors[self._here.place(last) or 0].end
        text = filled.rendering.text
        before, behind = text[at : word.start], filled.rendering.behind(word) or ""
        # white space at the edge of the words may be trimmed
        edges = itertools.product((before, before.rstrip()), (behind, behind.lstrip()))
        kept = next(((one, other) for one, other in edges if one + other == gap), None)
        if kept is None or text[:at] != self._here.text[:at]:
            return None
        finder = TurnFinder(filled, self._traits, self._special, self._edges, self._context)
        finder.compared, finder.fresh, finder._said = self.compared, self.fresh, self._said
        turn, *further = finder._message(index, filled.turns[index])
        if further:
            return None
        self.stop, self.unended, self.plain = (
            finder.stop or self.stop, self.unended or finder.unended, self.plain or finder.plain,
        )  # fmt: skip
        middle = at + len(kept[0])
        end = max(middle, middle + turn.end - word.end - (len(behind) - len(kept[1])))
        return attrs.evolve(turn, start=min(turn.start, middle), end=end)

    # --- Where a turn begins
    def _begins(self, index: int, before: Anchor | None, gap: str, first: Anchor, said: int, *, later: bool) -> int:
        """How much of the gap in front of a turn the model is given; `said` of it belongs to its own last turn."""
        # messages that leave no sentinel may lie in the gap
        distance = index - (self._talk.owner(before.number) or 0 if before else 0)
        shown = self._without_ids(gap, index), self._blanks(before, gap, first)
        key = ("begins", shown, self._kind_of(before), self._kind(index, first), distance, said, later, self._context)
        if (known := self._known(key)) is not None:
            assert isinstance(known, int)
            return known
        offset = self._given_after_tools(index, before, gap) if later else self._given(index, before, gap, said)
        if offset is None and not later:
            offset = self._given_after_a_user(index, gap)
        if offset is None:
            raise not_located(
                index,
                "where its turn begins cannot be told, because the generation prompt and the turn differ "
                f"({_shown(gap)} is written before it)",
            )
        self._keep(key, offset, index)
        return offset

    def _given(self, index: int, before: Anchor | None, gap: str, said: int) -> int | None:
        given, closed = (self._written_after(self._render(index, how), before) for how in ("prompt", "before"))
        if given is None:
            return None
        # where no generation prompt follows, the conversation may be closed
        unprompted = closed is not None and closed.startswith(given)
        if gap.startswith(given):
            offset = len(given)
            if not self._traits.header:
                return offset + self._usual(index, before, gap[offset:], gap[:offset])
            return offset + (self._header_at(gap, offset) if unprompted else 0)
        floor = max(said, 0 if closed is None else len(self._special.common([closed, gap]).rstrip()))
        return self._where_they_part(index, before, gap, given, floor, unprompted)

    def _given_after_a_user(self, index: int, gap: str) -> int | None:
        """A turn that no user's turn precedes, as at the start: what is its own if one does, behind the same header."""
        asked = self._talk.behind_a_user(index)
        own = [] if asked is None else asked.own(index + 1)
        if asked is None or not own:
            return None
        finder = TurnFinder(asked, self._traits, self._special, self._edges, self._context)
        last = finder._before(own[0])
        if last is None or asked.owner(last.number) != index:
            return None
        between = asked.rendering.text[last.end : own[0].start]
        given = finder._given(index + 1, last, between, 0)
        header = self._traits.header.removeprefix(self._traits.next_end).lstrip()
        # the prompt may open something in front of the header
        starts = sorted({0, *(side for token in self._special.tags.finditer(header) for side in token.span())})
        written = (header[i:] for i in starts if given is not None and between[:given].endswith(header[i:]))
        behind = next((one for one in written if one.strip() or not header), None)
        if given is None or behind is None or not gap.endswith(behind + between[given:]):
            return None
        return len(gap) - len(between) + given

    def _where_they_part(
        self, index: int, before: Anchor | None, gap: str, given: str, floor: int, unprompted: bool
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

    def _given_after_tools(self, index: int, before: Anchor | None, gap: str) -> int | None:
        """Words of a message that the template writes behind the answers to its calls."""
        silent = Message("assistant", "", tool_calls=self._turns[index].tool_calls)
        asked = [*self._turns[:index], silent, *self._turns[index + 1 : self._answered(index)]]
        given = self._written_after(self._talk(asked, True), before)
        return len(given) if given is not None and gap.startswith(given) else None

    def _usual(self, index: int, before: Anchor | None, rest: str, given: str) -> int:
        """The header of a template without generation prompts: what all turns of the assistant begin with."""
        shared = [rest]
        for last in (True, False):
            plain = self._plain(index, before, last)
            if plain is not None and plain.startswith(given):
                shared.append(plain[len(given) :])
        header = self._special.common(shared)
        return len(header) if any(one.isalnum() for one in header) else 0

    def _cuts(self, given: str) -> list[str]:
        """A generation prompt, and what is left of it without what its last tokens open, the longest first."""
        starts = [token.start() for token in self._special.tags.finditer(given)]
        return [given, *(given[:start] for start in reversed(starts))]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"…{text[-60:]}")
