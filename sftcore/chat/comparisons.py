"""Compares renderings of one conversation: what they show is kept by what the template writes around a turn.

Turns of other conversations that look the same then need no renderings of their own. Where a turn begins is told in
sftcore.chat.spans; where it ends is told here, by renderings in which it is last and in which another turn follows.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

import attrs
from attrs import define, field, frozen

from sftcore.chat.hidden import PROBED, REPEATED, Anchor, HiddenConversation, Rendering, ending_with
from sftcore.chat.template import SpecialTexts, TemplateTraits
from sftcore.core.errors import RowError
from sftcore.core.types import Message

_KEPT_EDGES = 4096
"""How many results of comparisons are kept; data with calls have a few hundred."""

_LONG_ID = 4


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
class Comparisons:
    """One conversation in its hidden rendering, and its other renderings.

    `stop` is the token that must be appended because the template ends the last turn without one, or "". `unended` says
    that nothing ends a turn before the last, `plain` that what ends one is no token of the tokenizer. `compared` holds
    what was not among the known edges, `fresh` the messages at which that was.
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
    fresh: set[int] = field(factory=set, init=False)
    _silent: bool = field(default=False, init=False)
    _said: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._turns = self._talk.turns
        self._here = self._talk.rendering
        self._places = {anchor.start: place for place, anchor in enumerate(self._here.anchors)}
        self._last_user = max((i for i, turn in enumerate(self._turns) if turn.role == "user"), default=-1)
        self._made: dict[Hashable, Rendering | None] = {}

    # --- Where a turn ends
    @property
    def talk(self) -> HiddenConversation:
        """The conversation."""
        return self._talk

    def _last_of(self, index: int, run: Sequence[Anchor], upto: int) -> Anchor | None:
        """The last sentinel of a turn, if it has any: names of calls at its end may be those in the tool's answer."""
        words = [anchor for anchor in run if not self._is_repeated(anchor)]
        last = words[-1] if words else None
        start = self._places[last.start] + 1 if last else self._places[run[0].start]
        names = list(itertools.takewhile(lambda one: self._talk.owner(one.number) == index, self._here.anchors[start:]))
        if not names:
            return last
        before = (last or self._before(names[0]), *names[:-1])
        texts = tuple(self._without_ids(self._tail(one) if one else "", index) for one in before)
        calls = tuple(self._talk.originals[one.number].call for one in names)
        key = ("names", texts, calls, self._kind(index, last), self._context)
        if (known := self._known(key)) is None:
            tried = (self._render(index, how, upto) for how in ("stopped", "user", "assistant"))
            rendering = next((one for one in tried if one and (last is None or one.place(last) is not None)), None)
            if rendering is None:
                raise not_located(index, "where its turn ends cannot be told, because it cannot be the last one")
            place = -1 if last is None else rendering.place(last)
            own = [one for one in rendering.anchors[(place or 0) + 1 :] if self._talk.owner(one.number) == index]
            known = self._keep(key, len(own), index)
        assert isinstance(known, int)
        if known > len(names):
            raise not_located(index, "its calls cannot be told from others with the same ids")
        return names[known - 1] if known else last

    def _is_repeated(self, anchor: Anchor) -> bool:
        original = self._talk.original(anchor.number)
        return original is not None and original.kind in REPEATED

    def _ends(self, index: int, last: Anchor, tail: str, upto: int) -> Ending:
        """How the turn ends behind a sentinel; `tail` is what follows there up to the next sentinel."""
        following = self._turns[upto].role if upto < len(self._turns) else ""
        shown = self._without_ids(tail, index), self._blanks(last, tail, self._after(last))
        key = ("ends", shown, self._kind_of(last), self._kind(index, last), following, self._context)
        if (known := self._known(key)) is None:
            known = self._keep(key, self._compared(index, last, tail, upto), index)
        assert isinstance(known, Ending)
        if not following:
            self.stop = known.stop
        self.unended |= not (known.ender or known.stop) and following != "assistant"
        self.plain |= known.plain
        return known

    def _compared(self, index: int, last: Anchor, tail: str, upto: int) -> Ending:
        following = self._turns[upto].role if upto < len(self._turns) else ""
        if not following and self._here.after_all()[0] != last:
            raise not_located(index, "the chat template writes other words behind its last turn")
        roles = ["user", *(["tool"] if self._turns[index].tool_calls else []), *([following] if following else [])]
        followed = {role: self._tail_of(index, role, upto, last) for role in roles}
        stopped = self._tail_of(index, "stopped", upto, last)
        if stopped is None and not any(tried for role, tried in followed.items() if role != following):
            followed["assistant"] = self._tail_of(index, "assistant", upto, last)
        tails = [one for one in (tail, stopped, *followed.values()) if one is not None]
        if following and len(tails) == 1:
            raise not_located(index, "where its turn ends cannot be told, because nothing else may follow it")
        common = self._without_header(self._special.common(tails), stopped is None)
        ender = self._traits.ender or self._special.eos
        if ender and ender in common:
            return Ending(common.find(ender) + len(ender), ender)
        if stopped is None and following and (ender := self._traits.next_end) and ender in common:
            return Ending(common.rfind(ender) + len(ender), ender)
        own = self._blanks(last, tail, None)[0]
        written = common.rstrip() or (own if tail.startswith(own) else "")
        beyond = tail[len(written) :]
        if following and (same := followed.get(following)) is not None:
            beyond = self._special.common([tail, same])[len(written) :]
        known_end = self._ends_as_answers_do(tail, common, written, beyond, following)
        if known_end is not None:
            return known_end
        ending = self._ends_in_its_own_way(index, last, tail, (written, beyond, following), followed)
        if following and stopped is not None and not (ending.ender or self._traits.ends_answers):
            # white space is all that ends a turn, as it does before the token that is appended to the last one
            ending = attrs.evolve(ending, length=max(ending.length, len(common)))
        return ending

    def _ends_as_answers_do(self, tail: str, common: str, written: str, beyond: str, following: str) -> Ending | None:
        """The end that the template writes behind answers, if it stands here."""
        traits = self._traits
        if (plain := traits.plain_end) and (plain in common or beyond.lstrip().startswith(plain)):
            stop = "" if following else self._special.eos
            return Ending(len(tail) if stop else tail.find(plain) + len(plain), plain, True, stop)
        if not (ender := traits.next_end):
            return None
        if following and beyond.lstrip().startswith(ender):
            return Ending(len(written) + beyond.find(ender) + len(ender), ender)
        if following:
            return None
        if self._special.first_of_any(beyond) is None and not traits.ends_answers:
            return Ending(len(tail), stop=ender)
        if (last := traits.last_end) and beyond.lstrip().startswith(last):
            return Ending(len(written) + beyond.find(last) + len(last), last)
        return None

    def _ends_in_its_own_way(
        self,
        index: int,
        last: Anchor,
        tail: str,
        parts: tuple[str, str, str],
        followed: Mapping[str, str | None],
    ) -> Ending:
        """The end of a turn that no answer ends like: its own token, that of the next header, or none."""
        written, beyond, following = parts
        calls, traits = bool(self._turns[index].tool_calls), self._traits
        token = self._special.at_end(written)
        # where answers have no end of their own, what closes a call is none either
        if token and (traits.ends_answers or not calls) and not self._is_inside(index, last, token):
            return Ending(len(written), token)
        found = self._special.first_of_any(beyond)
        plain = "" if token else written.strip()
        if plain and self._is_inside(index, last, plain):
            plain = ""
        if plain and (found is None or beyond[: found.start()].strip() or self._special.like_a_tag(plain)):
            stop = "" if following else self._special.eos
            return Ending(len(tail) if stop else len(written), plain, True, stop)
        if found is not None and found.group() == traits.ender:
            return Ending(len(written) + found.end(), found.group())
        # where answers have an end of their own, a call without one has none
        taken = found is not None and following != "assistant" and not (calls and traits.ender)
        if found is not None and taken and not self._opens_the_assistants(beyond[found.start() :]):
            return Ending(len(written) + found.end(), found.group())
        if following:
            return Ending(len(written))
        return Ending(len(tail), "", False, traits.ender or self._stop(index, written, followed))

    def _without_header(self, common: str, always_followed: bool) -> str:
        """What is common to all turns that were tried, without that with which all next turns begin."""
        header = self._traits.header.removeprefix(self._traits.next_end).lstrip() if always_followed else ""
        begun = (header[:size].rstrip() for size in range(len(header), 0, -1))
        for opener in (*self._traits.openers, *begun):
            if opener and common.rstrip().endswith(opener):
                return common.rstrip().removesuffix(opener)
        return common

    def _is_inside(self, index: int, last: Anchor, text: str) -> bool:
        """Whether a text that seems to end a turn stands inside it once it has another call, or words."""
        message = self._as_shown(index)
        following = last.number if message.tool_calls else PROBED["assistant"]
        if message.tool_calls:
            fuller = attrs.evolve(message, tool_calls=[*message.tool_calls, message.tool_calls[-1]])
        else:
            fuller = ending_with(self._talk.sentinels.word(PROBED["assistant"]), message)
        rendering = self._talk([*self._turns[:index], fuller])
        place = None if rendering is None else rendering.place(last)
        if rendering is None or place is None:
            return False
        again = any(one.number == following for one in rendering.anchors[place + 1 :])
        return again and text in (rendering.behind(last) or "")

    def _stop(self, index: int, written: str, followed: Mapping[str, str | None]) -> str:
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
    def _written_after(rendering: Rendering | None, last: Anchor | None) -> str | None:
        """What a rendering ends with behind this sentinel; None if another one is its last."""
        if rendering is None:
            return None
        found, text = rendering.after_all()
        return text if found == last else None

    def _tail_of(self, index: int, how: str, upto: int, last: Anchor) -> str | None:
        """What is written behind a sentinel in another rendering; None if other words of the turn are."""
        rendering = self._render(index, how, upto)
        place = None if rendering is None else rendering.place(last)
        if rendering is None or place is None:
            return None
        before, behind = rendering.anchors[: place + 1], rendering.anchors[place + 1 :]
        if any(one.number == PROBED.get(how) for one in before):
            return None  # the template writes it inside the turn
        if any(self._talk.owner(one.number) == index and not self._is_repeated(one) for one in behind):
            return None
        return rendering.behind(last)

    def _tail(self, anchor: Anchor) -> str:
        """What is written behind a sentinel, up to the next one."""
        following = self._after(anchor)
        return self._here.text[anchor.end : following.start if following else None]

    def _before(self, anchor: Anchor) -> Anchor | None:
        place = self._places[anchor.start]
        return self._here.anchors[place - 1] if place else None

    def _after(self, anchor: Anchor) -> Anchor | None:
        place = self._places[anchor.start] + 1
        return self._here.anchors[place] if place < len(self._here.anchors) else None

    # --- What edges are known by
    def _blanks(self, before: Anchor | None, text: str, behind: Anchor | None) -> tuple[str, str]:
        """The white space at both ends of a text between two sentinels that is of the messages, not the template's."""
        around = (
            self._around(before) if text[:1].isspace() else None,
            self._around(behind) if text[-1:].isspace() else None,
        )
        one, other = ("" if found is None else found[1 - side] for side, found in enumerate(around))
        return one[: len(one) - len(one.lstrip())], other[len(other.rstrip()) :]

    def _around(self, anchor: Anchor | None) -> tuple[str, str] | None:
        """What its message has before and behind a sentinel of its content or reasoning."""
        original = None if anchor is None else self._talk.original(anchor.number)
        if anchor is None or original is None:
            return None
        message = self._turns[original.message]
        whole = message.reasoning if original.kind == "reasoning" and message.reasoning else message.content
        if not isinstance(whole, str):
            return None
        before, found, behind = whole.partition(self._talk.sentinels.word(anchor.number))
        return (before, behind) if found else None

    def _kind(self, index: int, anchor: Anchor | None) -> Hashable:
        message = self._turns[index]
        original = None if anchor is None else self._talk.original(anchor.number)
        mine = original.kind if original is not None and original.message == index else None
        after_user = index > self._last_user
        return (bool(message.content), bool(message.reasoning), len(message.tool_calls), mine, after_user)

    def _kind_of(self, anchor: Anchor | None) -> Hashable:
        original = None if anchor is None else self._talk.original(anchor.number)
        return None if original is None else (self._turns[original.message].role, original.kind)

    def _without_ids(self, text: str, index: int) -> str:
        """A text as a key: the ids of calls in it and around it are as long as they are, but any."""
        for turn in self._turns[max(0, index - 1) : index + 2]:
            for number in (turn.tool_call_id, *(call.get("id") for call in turn.tool_calls)):
                # shorter ones may stand there for other reasons
                if isinstance(number, str) and len(number) >= _LONG_ID and number in text:
                    text = text.replace(number, "\0" * len(number))
        return text

    def _answered(self, index: int) -> int:
        """The number of the first message behind the answers to a message's calls."""
        answered = index + 1
        while answered < len(self._turns) and self._turns[answered].role == "tool":
            answered += 1
        return answered

    def _known(self, key: Hashable) -> int | Ending | None:
        known = self._edges.get(key)
        return self.compared.get(key) if known is None else known

    def _keep(self, key: Hashable, value: Any, index: int) -> Any:
        self.compared[key] = value
        self.fresh.add(index)
        return value

    def _plain(self, index: int, before: Anchor | None, last: bool) -> str | None:
        """What the template writes before a plain turn in this one's place, as the last one or inside."""
        rendering = self._render(index, "plain, last" if last else "plain")
        found = None if rendering is None else rendering.before(PROBED["assistant"])
        return found[1] if found is not None and found[0] == before else None


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
