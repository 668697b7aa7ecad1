"""Where each assistant turn stands in a rendered conversation, for chat templates without generation markers.

Every text part of every message is replaced by a sentinel, the conversation is rendered once more, and the originals
are put back: only where that rebuilds the real rendering byte for byte are the sentinels' places trusted. A turn is
what the model must produce, from behind the generation prompt to the end token of the turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs
from attrs import frozen

from sftcore.errors import RowError
from sftcore.types import Message, Span

Render: TypeAlias = Callable[[Sequence[Message], bool], str]
"""Renders messages, with or without the generation prompt."""

_THINKING = re.compile(r"(<think>|</think>)")
_SENTINEL = "q7zX{:04d}Xz7q"
_MARK = re.compile("q7zX[0-9]{4}Xz7q")


@frozen
class _Place:
    """Where an original text part stands in the real rendering, and to which message it belongs."""

    message: int
    start: int
    end: int


class AssistantSpans:
    """Finds assistant turns for one chat template, whose generation prompt and end tokens it learns when it is made.

    Args:
        render: renders messages with that template.
        special_texts: the texts of the tokenizer's special tokens.
        eos: the text of its EOS token, or an empty text.
    """

    def __init__(self, render: Render, special_texts: Sequence[str], eos: str) -> None:
        longest_first = sorted(filter(None, {*special_texts, eos}), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "$^")
        self._eos = eos
        self._header, self._enders = self._probe(render)

    def find(self, turns: Sequence[Message], text: str, render: Render) -> tuple[Span, ...]:
        """The span of each assistant turn in `text`, which is what `render(turns, False)` gives; in order.

        Turns with `train` false or `weight` 0 are left out; a `weight` between becomes the span's.

        Raises:
            RowError: a turn cannot be told apart; with the message's index and the reason.
        """
        places = _places(turns, text, render)
        spans: list[Span] = []
        for index, turn in enumerate(turns):
            if turn.role == "assistant":
                ends = [place.end for place in places if place.message < index]
                before = max(ends + [span.end for span in spans], default=0)
                after = min((place.start for place in places if place.message > index), default=len(text))
                own = [place for place in places if place.message == index]
                spans.append(self._turn(text, index, turn, own, before, after))
        weights = [_weight(turn) for turn in turns if turn.role == "assistant"]
        return tuple(attrs.evolve(span, weight=weight) for span, weight in zip(spans, weights, strict=True) if weight)

    def _turn(self, text: str, index: int, turn: Message, own: Sequence[_Place], before: int, after: int) -> Span:
        if not own and not turn.tool_calls and isinstance(turn.content, str) and turn.content.strip():
            raise _refused(index, "the chat template leaves its words out")
        first = min((place.start for place in own), default=after)
        start = self._start(text, before, first, wordless=not own)
        if start is None:
            raise _refused(index, "its header cannot be found in the rendering")
        last = max((place.end for place in own), default=start)
        for call in turn.tool_calls:
            name = str(call.get("function", call).get("name", ""))
            at = text.find(name, last, after)
            if at < 0:
                raise _refused(index, f'the chat template leaves its call of "{name}" out')
            last = at + len(name)
        end = self._end(text, last, after, plain=bool(own) and not turn.tool_calls)
        if end is None:
            raise _refused(index, "the chat template ends it with no end token, so the model would never learn to stop")
        return Span(start, end)

    def _start(self, text: str, before: int, first: int, *, wordless: bool) -> int | None:
        """Behind the generation prompt; behind the last special token where the template has none.

        It is the last one before the turn's words; a turn without words takes the next one, as more may follow it.
        """
        region = text[before:first]
        for header in _shortened(self._header):
            at = region.find(header) if wordless else region.rfind(header)
            if at >= 0:
                return before + at + len(header)
        if self._header:
            return None
        tokens = list(self._special.finditer(region))
        return before + tokens[-1].end() if tokens else first

    def _end(self, text: str, last: int, after: int, *, plain: bool) -> int | None:
        """Behind the token that ends a turn, and behind the EOS where that follows at once.

        Behind words it is the first special token; behind tool calls or nothing, whose markup may hold special tokens
        of its own, it is one that was seen to end a plain turn.
        """
        if plain:
            token = self._special.search(text, last, after)
            end = token.end() if token else None
        else:
            found = [(at, ender) for ender in self._enders if (at := text.find(ender, last, after)) >= 0]
            end = min(found)[0] + len(min(found)[1]) if found else None
        if end is not None and self._eos and text.startswith(self._eos, end):
            return end + len(self._eos)
        return end

    def _probe(self, render: Render) -> tuple[str, tuple[str, ...]]:
        """The generation prompt, and the tokens that end a plain turn inside and at the end of a conversation."""
        words = [_SENTINEL.format(9001 + i) for i in range(4)]
        turns = [Message(role, word) for role, word in zip(("user", "assistant") * 2, words, strict=True)]
        try:
            asked, prompted, told = render(turns[:1], False), render(turns[:1], True), render(turns, False)
        except RowError:
            return "", ()
        # some templates put EOS where no generation prompt follows (Phi-3)
        asked = asked.removesuffix(self._eos)
        header = prompted[len(asked) :] if prompted.startswith(asked) else ""
        ends = [self._special.search(told, told.find(word)) for word in (words[1], words[3]) if word in told]
        return header, tuple({token.group() for token in ends if token})


def _places(turns: Sequence[Message], text: str, render: Render) -> list[_Place]:
    """Where every text part stands in `text`, found by sentinels and verified by putting the originals back."""
    originals: list[tuple[int, str]] = []

    def mark(index: int, part: str) -> str:
        bare = part.strip()
        if not bare:
            return part
        originals.append((index, bare))
        return part.replace(bare, _SENTINEL.format(len(originals) - 1), 1)

    marked = [_marked(turn, index, mark) for index, turn in enumerate(turns)]
    if _MARK.search(text) or len(originals) > 9000:
        raise RowError("the assistant's turns cannot be told apart in this conversation.", fix="Drop the row.")
    sentinels = render(marked, False)
    places: list[_Place] = []
    rebuilt, at, length = [], 0, 0
    for found in _MARK.finditer(sentinels):
        message, original = originals[int(found.group()[4:8])]
        rebuilt += [sentinels[at : found.start()], original]
        length += found.start() - at
        places.append(_Place(message, length, length + len(original)))
        length += len(original)
        at = found.end()
    if "".join([*rebuilt, sentinels[at:]]) != text:
        raise RowError(
            "the chat template rewrites the messages' text, so the assistant's turns cannot be told apart.",
            fix="Use a template that prints content as it is, or one with {% generation %} markers.",
        )
    if [place.message for place in places] != sorted(place.message for place in places):
        raise RowError("the chat template changes the order of the messages.", fix="Use another template.")
    return places


def _marked(turn: Message, index: int, mark: Callable[[int, str], str]) -> Message:
    reasoning = None if turn.reasoning is None else mark(index, turn.reasoning)
    content: Any = turn.content
    if isinstance(content, str):
        content = "".join(part if _THINKING.fullmatch(part) else mark(index, part) for part in _THINKING.split(content))
    elif content is not None:
        content = [part if part.text is None else attrs.evolve(part, text=mark(index, part.text)) for part in content]
    return attrs.evolve(turn, content=content, reasoning=reasoning)


def _weight(turn: Message) -> float:
    if turn.train is False:
        return 0.0
    return 1.0 if turn.weight is None else turn.weight


def _shortened(header: str) -> list[str]:
    """The generation prompt whole, then without what only opens the thinking of the newest turn."""
    bare = _THINKING.split(header)[0]
    return [header, *([bare] if bare != header and bare else [])] if header else []


def _refused(index: int, reason: str) -> RowError:
    return RowError(
        f"message {index} (assistant) cannot be supervised: {reason}.",
        fix="Drop the row, or use another chat template.",
    )
