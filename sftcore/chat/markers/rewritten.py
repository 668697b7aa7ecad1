"""Judges generation markers where a template rewrites words, so that the turns cannot be located: row by row.

The row is rendered with other words of everyone but the assistant, and with other words of the assistant. What markers
enclose must not change with the former, nor anything outside them with the latter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from sftcore.chat.markers.located import MarkersError, RenderMarked, Stretch, encloses, leaves_out, merged, shown
from sftcore.chat.shapes import marked
from sftcore.chat.template import SpecialTexts, TemplateTraits
from sftcore.core.errors import RowError
from sftcore.core.types import Message

_OTHER = "⁂ quite other words ⁂"
"""Begins and ends with a character that no text does."""


def prove_by_other_words(
    turns: Sequence[Message],
    text: str,
    marks: Sequence[Stretch],
    render_marked: RenderMarked,
    render_otherwise: RenderMarked,
    render: Callable[[Sequence[Message]], str],
    traits: TemplateTraits,
    special: SpecialTexts,
) -> None:
    """Raise unless markers enclose what the assistant writes, and nothing else.

    Args:
        turns: the conversation.
        text: its rendering.
        marks: what the template's generation markers enclose in it.
        render_marked: renders messages with what the markers enclose.
        render_otherwise: the same with other tools and documents than the conversation's.
        render: renders messages without a generation prompt.
        traits: what is known of the template.
        special: the tokenizer's special tokens.

    Raises:
        MarkersError: what failed.
    """
    if not (within := _worded(text, marks)):
        if marks:
            raise leaves_out("all that the assistant writes")
        return
    inside, outside = _pieces(text, within)
    _refuse_words_of_others(turns, inside, render_otherwise)
    other = _rendered(render_marked, [_with_other_words(turn) if turn.role == "assistant" else turn for turn in turns])
    if len(other[0]) != len(inside) or other[1] != outside:
        raise leaves_out("words of the assistant")
    if constant := [one for one, instead in zip(inside, other[0], strict=True) if one == instead]:
        raise encloses(f"{shown(constant[0])}, which the assistant does not write")
    for number, pair in enumerate(zip(inside, other[0], strict=True)):
        before, behind = _shared(*pair), _shared(pair[0][::-1], pair[1][::-1])[::-1]
        _refuse_before(turns, text, within[number][0], outside[number], before, render, traits, special)
        _refuse_behind(behind, outside[number + 1], number + 1 == len(inside), traits, special)


def _worded(text: str, marks: Sequence[Stretch]) -> list[Stretch]:
    """What markers enclose that is more than white space."""
    return [(start, end) for start, end in merged(marks) if text[start:end].strip()]


def _pieces(text: str, within: Sequence[Stretch]) -> tuple[list[str], list[str]]:
    """What markers enclose, and what stands around them."""
    edges = [0, *itertools.chain.from_iterable(within), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    return pieces[1::2], pieces[::2]


def _rendered(render_marked: RenderMarked, turns: Sequence[Message]) -> tuple[list[str], list[str]]:
    try:
        text, marks = render_marked(turns)
    except RowError as error:
        raise MarkersError(
            "the chat template rewrites the messages' text, and refuses others in their place, so what its generation "
            f"markers enclose cannot be proven ({error.what.rstrip('.')}).",
            fix="Use a template that prints content unchanged.",
        ) from error
    return _pieces(text, _worded(text, marks))


def _refuse_words_of_others(turns: Sequence[Message], inside: Sequence[str], render_otherwise: RenderMarked) -> None:
    others = [turn if turn.role == "assistant" else _with_other_words(turn) for turn in turns]
    if _rendered(render_otherwise, others)[0] == inside:
        return
    for i, turn in enumerate(turns):
        alone = [*turns[:i], others[i], *turns[i + 1 :]]
        if turn.role != "assistant" and _rendered(render_otherwise, alone)[0] != inside:
            raise encloses(f"words of message {i} ({turn.role})")
    raise encloses("words that are not the assistant's")


def _refuse_before(
    turns: Sequence[Message],
    text: str,
    start: int,
    outside: str,
    before: str,
    render: Callable[[Sequence[Message]], str],
    traits: TemplateTraits,
    special: SpecialTexts,
) -> None:
    """Raise if a marker begins before the header of a turn, or behind something that the assistant writes first."""
    header = traits.header.strip()
    if not before.strip():
        if header and header in outside and (first := outside.rpartition(header)[2]).strip():
            raise leaves_out(f"{shown(first)}, with which a turn of the assistant begins")
        return
    if any(ender in before for ender in _enders(traits, special)):
        raise encloses(f"{shown(before)}, which the assistant does not write")
    for i, turn in enumerate(turns):
        if turn.role == "assistant" and i:
            try:
                closed = render(turns[:i]).rstrip()
            except RowError:
                continue
            within = start < len(closed) < start + len(before) and text.startswith(closed)
            if within and not special.only_tags(text[start : len(closed)]):
                raise encloses(f"{shown(text[start : len(closed)])}, which the assistant does not write")


def _refuse_behind(behind: str, outside: str, last: bool, traits: TemplateTraits, special: SpecialTexts) -> None:
    """Raise if a marker ends behind the end of a turn, or before it."""
    if any(opener in behind for opener in traits.openers):
        raise encloses(f"{shown(behind)}, which the assistant does not write")
    ended = special.at_end(behind.rstrip()) or special.like_a_tag(behind.rstrip())
    enders = tuple(_enders(traits, special))
    if outside.lstrip().startswith(enders) or not (ended or (not last and not outside.strip())):
        raise leaves_out("the token that ends a turn")


def _shared(one: str, other: str) -> str:
    """What both texts begin with."""
    return "".join(
        letter for letter, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    )


def _enders(traits: TemplateTraits, special: SpecialTexts) -> set[str]:
    return {traits.ender, traits.next_end, traits.last_end, traits.plain_end, special.eos} - {""}


# --- Other words
def _with_other_words(turn: Message) -> Message:
    """The message with other words in place of each of its texts, and of the arguments of its calls."""
    other = marked(turn, 0, lambda index, text, kind: _OTHER)
    if isinstance(turn.content or "", str) and not (str(turn.content or "").strip() or turn.tool_calls):
        other = attrs.evolve(other, content=f"{turn.content or ''}{_OTHER}")
    calls = [_another_call(call) for call in turn.tool_calls]
    return attrs.evolve(other, tool_calls=calls, name=f"{turn.name}_other" if turn.name else turn.name)


def _another_call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = dict(call.get("function", call))
    given = function.get("arguments")
    function["arguments"] = _another(given)
    if function["arguments"] == given:
        function["arguments"] = {**(given if isinstance(given, Mapping) else {}), "other": _OTHER}
    return {**call, "function": function} if "function" in call else function


def _another(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _another(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_another(part) for part in value]
    if isinstance(value, str):
        return _OTHER
    return value + 1 if isinstance(value, (int, float)) and not isinstance(value, bool) else value
