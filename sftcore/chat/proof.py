"""Proves the turns that were found in a conversation, by renderings with other words and by the plain prefix method.

All renderings are hidden ones (see sftcore.chat.hidden). Nothing here takes part in finding the turns: what it says is
told by another route.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs

from sftcore.chat.comparisons import Edges, NotLocatedError, keep, not_located
from sftcore.chat.hidden import REPEATED, Anchor, HiddenConversation, Rendering
from sftcore.chat.spans import TurnFinder, TurnSpan
from sftcore.chat.template import SpecialTexts
from sftcore.core.errors import RowError
from sftcore.core.types import Message

_OTHER = " and quite other words"


def proven_turns(
    finder: TurnFinder,
    talk: HiddenConversation,
    special: SpecialTexts,
    edges: Edges,
    render_otherwise: Callable[[Sequence[Message]], str],
) -> Sequence[TurnSpan]:
    """The turns, proven where they look like none before.

    Raises:
        NotLocatedError: what failed, and in which message.
    """
    found = finder.find()
    if finder.compared:
        prove(talk, found, finder.fresh, special, render_otherwise)
        keep(edges, finder.compared)
    return found


def carried_over(
    finder: TurnFinder,
    here: HiddenConversation,
    special: SpecialTexts,
    edges: Edges,
    render_otherwise: Callable[[Sequence[Message]], str],
) -> Sequence[TurnSpan] | None:
    """The turns of another rendering of the same conversation in this one; None where they do not stand here alike."""
    there = finder.talk
    try:
        found = proven_turns(finder, there, special, edges, render_otherwise)
    except NotLocatedError:
        return None
    carried = []
    for turn in found:
        own = list(zip(there.own(turn.message), here.own(turn.message), strict=False))
        inside = [pair for pair in own if turn.start <= pair[0].start < turn.end]
        if not inside or any(one.number != other.number for one, other in inside):
            return None
        start = inside[0][1].start - (inside[0][0].start - turn.start)
        end = inside[-1][1].end + (turn.end - inside[-1][0].end)
        # what surrounds it must be the same, too, or the template writes something for those words
        bound = min((one.start for one in there.rendering.anchors if one.start >= turn.end), default=None)
        alike = there.rendering.text[turn.start - len(turn.header) : bound]
        if not here.rendering.text.startswith(alike, max(start - len(turn.header), 0)):
            return None
        carried.append(attrs.evolve(turn, start=start, end=end))
    return carried


def prove(
    talk: HiddenConversation,
    found: Sequence[TurnSpan],
    fresh: Collection[int],
    special: SpecialTexts,
    render_otherwise: Callable[[Sequence[Message]], str],
) -> None:
    """Raise if a turn holds something foreign, lacks something of its own, or is refuted by the plain prefix method.

    Args:
        talk: the conversation.
        found: its turns.
        fresh: the messages whose turns look like none that was proven before.
        special: the tokenizer's special tokens.
        render_otherwise: renders messages with other tools and documents than the conversation's.

    Raises:
        NotLocatedError: what failed, and in which message.
    """
    _refuse_displaced(talk, found)
    _refuse_foreign(talk, found, render_otherwise)
    by_message = itertools.groupby(sorted(found, key=lambda turn: turn.message), key=lambda turn: turn.message)
    for index, group in by_message:
        spans = list(group)
        if len(spans) == 1 and index in fresh:
            _refuse_refuted(talk, index, spans[0], special)


def _refuse_displaced(talk: HiddenConversation, found: Sequence[TurnSpan]) -> None:
    """Each word of the assistant lies in a turn of its own message, and no word of anyone else lies in a turn."""
    for anchor in talk.rendering.anchors:
        owner = talk.owner(anchor.number)
        inside = [turn.message for turn in found if turn.start < anchor.end and anchor.start < turn.end]
        if owner is None or (inside and inside != [owner]):
            raise not_located(inside[0] if inside else 0, "words of another message would be supervised with it")
        kind = talk.originals[anchor.number].kind
        if not inside and talk.turns[owner].role == "assistant" and kind not in REPEATED:
            raise not_located(owner, "the chat template writes some of its words outside its turn")


def _refuse_foreign(
    talk: HiddenConversation, found: Sequence[TurnSpan], render_otherwise: Callable[[Sequence[Message]], str]
) -> None:
    """With other words of all others, other tools and other documents, each turn is the same for each character."""
    turns = [turn if turn.role == "assistant" else _with_other_words(turn) for turn in talk.turns]
    try:
        other = talk.sentinels.found_in(render_otherwise(turns))
    except RowError:
        return  # the template reads the words, and takes no others
    for turn in found:
        own = [anchor for anchor in talk.own(turn.message) if turn.start <= anchor.start < turn.end]
        if not own:
            continue
        first, last = (_alike(other, anchor) for anchor in (own[0], own[-1]))
        if first is None or last is None:
            continue
        start = first.start - (own[0].start - turn.start)
        end = last.end + (turn.end - own[-1].end)
        if other.text[max(start, 0) : end] != talk.rendering.text[turn.start : turn.end]:
            raise not_located(turn.message, "its turn changes with words that are not the assistant's")


def _refuse_refuted(talk: HiddenConversation, index: int, turn: TurnSpan, special: SpecialTexts) -> None:
    """Where the conversation up to a turn, and through it, are prefixes of the rendering, the turn lies between."""
    prompt, through = talk(talk.turns[:index], True), talk(talk.turns[: index + 1])
    text = talk.rendering.text
    if prompt is None or through is None or not text.startswith(prompt.text) or not text.startswith(through.text):
        return
    plain, ours = text[len(prompt.text) : len(through.text)].strip(), text[turn.start : turn.end].strip()
    # a header may be written behind some turns alone
    header = turn.header.strip()
    starts = sorted({0, *(side for token in special.tags.finditer(header) for side in token.span())})
    starts += [found.end() for found in re.finditer(r"\n", header)]
    headed = next((len(header) - i for i in starts if header and plain.startswith(header[i:])), 0)
    # tokens may end the conversation, or begin the next turn
    tokens = re.compile(rf"(?:{special.tags.pattern}|\s)*")
    for shorter, longer in (sorted((one, ours), key=len) for one in (plain, plain[headed:].strip())):
        if longer.startswith(shorter) and tokens.fullmatch(longer[len(shorter) :]):
            return
    raise not_located(index, "rendering the conversation up to it and through it shows another turn")


def _alike(rendering: Rendering, like: Anchor) -> Anchor | None:
    """The same sentinel in another rendering."""
    place = rendering.place(like)
    return None if place is None else rendering.anchors[place]


def _with_other_words(turn: Message) -> Message:
    content: Any = turn.content
    if isinstance(content, str):
        content = content + _OTHER if content.strip() else content
    elif content is not None:
        content = [attrs.evolve(part, text=part.text + _OTHER) if part.text else part for part in content]
    return attrs.evolve(
        turn, content=content, name=f"{turn.name}{_OTHER.title().replace(' ', '')}" if turn.name else None
    )


def with_other_texts(value: Any, names: Sequence[str] = ("name", "description", "text", "title")) -> Any:
    """Tools or documents in which the texts under these keys are others, of other lengths."""
    if isinstance(value, Mapping):
        return {
            key: f"{part}{_OTHER}" if key in names and isinstance(part, str) else with_other_texts(part, names)
            for key, part in value.items()
        }
    return [with_other_texts(part, names) for part in value] if isinstance(value, (list, tuple)) else value
