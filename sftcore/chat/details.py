"""Finds in a rendered conversation the characters of a turn that are not trained like the rest of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from sftcore.chat.shapes import places_of
from sftcore.core.errors import RowError
from sftcore.core.types import Message, Span, Turns
from sftcore.rows.details import details_of, text_parts

if TYPE_CHECKING:
    from sftcore.chat.conversation import RenderedConversation


def counted(conversation: RenderedConversation, turns: Turns, message: int, whole: Span) -> Iterator[Span]:
    """The parts of a turn, or of a stretch of it, that count, each with its weight.

    What is not of its text or reasoning, such as calls and the token that ends it, counts as the turn does.

    Args:
        conversation: as it was rendered.
        turns: its messages, with their details (see sftcore.rows.details).
        message: whose turn it is.
        whole: where it is, with the weight of the message.

    Raises:
        RowError: the details are of another text.
    """
    turn = turns[message]
    stretches, thought = details_of(turn)
    source = _text_of(turn)
    if stretches and stretches[-1].end != len(source):
        raise RowError(
            f"message {message} has marks for {stretches[-1].end} characters of its content, which has {len(source)}.",
            fix="Give training_detail for the text as it is.",
        )
    of_source = [stretch.weight for stretch in stretches for _ in range(stretch.start, stretch.end)]
    weights = [whole.weight] * (whole.end - whole.start)
    first = sum(len(places_of(one)) for one in turns[:message])
    own = places_of(turn)
    for original, start, end in conversation.places():
        if not first <= original < first + len(own):
            continue
        of_thoughts, at, length = own[original - first]
        if of_thoughts:
            if thought is not None:
                _put(weights, whole, start, [thought] * (end - start))
            continue
        if not stretches:
            continue
        others = [(place, size) for thoughts, place, size in own if not thoughts]
        floor = max((place + size for place, size in others if place < at), default=0)
        ceiling = min((place for place, _ in others if place > at), default=len(source))
        low, high = at, at + length
        while low > floor and whole.start < start and source[low - 1] == conversation.text[start - 1]:
            low, start = low - 1, start - 1
        while high < ceiling and end < whole.end and source[high] == conversation.text[end]:
            high, end = high + 1, end + 1
        _put(weights, whole, start, of_source[low:high])
    at = whole.start
    for weight, run in groupby(weights):
        size = len(list(run))
        if weight:
            yield Span(at, at + size, weight)
        at += size


def _put(weights: list[float], whole: Span, start: int, values: Sequence[float]) -> None:
    for at, value in enumerate(values, start):
        if whole.start <= at < whole.end:
            weights[at - whole.start] = value


def _text_of(turn: Message) -> str:
    if isinstance(turn.content, str):
        return turn.content
    return "".join(part.text or "" for part in text_parts(turn.content))
