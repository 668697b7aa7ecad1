"""Which characters of a message count for the loss, where that is not all of them or none.

A message says so in its key `training_detail`, as Axolotl writes it: a list of stretches of its text, of which
`{"begin_offset": 0, "end_offset": 8, "train": true}` goes from the first character to the ninth. Characters in no
stretch are not trained. Marks on the parts of a content become such stretches too, of the texts of its parts joined; an
entry with `{"of": "reasoning"}` is for the reasoning as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen

from sftcore.core.errors import RowError
from sftcore.core.types import Message, Part
from sftcore.rows.columns import from_json
from sftcore.util.shown import shortened

DETAIL = "training_detail"
NAMES = (DETAIL, "train_detail")
THOUGHTS = ("thinking", "reasoning", "redacted_thinking")
"""Parts that are the reasoning before an answer."""

_FIX = 'Give a list of {"begin_offset": 0, "end_offset": 8, "train": true}: characters from 0 to 8, both included.'


@frozen
class Stretch:
    """Characters of a message's text, from `start` to before `end`, and how much they count (0.0 to 1.0)."""

    start: int
    end: int
    weight: float


def text_parts(content: Any) -> list[Part]:
    """The parts of a content whose texts are what a message says, without its reasoning."""
    if content is None or isinstance(content, str):
        return []
    return [part for part in content if part.text is not None and part.type not in THOUGHTS]


def details_of(message: Message) -> tuple[list[Stretch], float | None]:
    """The stretches of the message's text with what each counts, and what its reasoning does; None as its turn does."""
    entries = message.extra.get(DETAIL, ())
    found = [Stretch(one["begin_offset"], one["end_offset"] + 1, one["weight"]) for one in entries if "of" not in one]
    return found, next((one["weight"] for one in entries if "of" in one), None)


def without_details(turns: Sequence[Message]) -> Sequence[Message]:
    """The messages as a chat template gets them."""
    for turn in turns:  # not by any(): each row comes through here
        if DETAIL in turn.extra:
            break
    else:
        return turns
    return [
        attrs.evolve(turn, extra={key: value for key, value in turn.extra.items() if key != DETAIL})
        if DETAIL in turn.extra
        else turn
        for turn in turns
    ]


def with_details(message: Message, where: str) -> Message:
    """The message with its details in order, each character in one of them; as a whole where they are all alike.

    Raises:
        RowError: they cannot be read, or do not fit the text.
    """
    names = [name for name in NAMES if message.extra.get(name) not in (None, [], "", {})]
    rest = {key: value for key, value in message.extra.items() if key not in NAMES}
    if not names:
        return message if rest == message.extra else attrs.evolve(message, extra=rest)
    value = message.extra[names[0]]
    if len(names) > 1 and value != message.extra[names[1]]:
        raise RowError(f"{where} has {' and '.join(names)}, which differ.", fix="Keep one of them.")
    content = message.content
    length = len(content) if isinstance(content, str) else sum(len(part.text or "") for part in text_parts(content))
    entries = _entries(value, names[0], where)
    usual = usual_weight(message)
    read = [(one, _weight_of(one, names[0], where, usual)) for one in entries]
    stretches = [_stretch(one, weight, names[0], where) for one, weight in read if "of" not in one]
    stretches = _covered(sorted(stretches, key=lambda one: one.start), length, where)
    thought = next((weight for one, weight in read if "of" in one), None)
    return _kept(attrs.evolve(message, extra=rest), stretches, thought)


def as_details(message: Message, parts: Sequence[Part], weights: Sequence[float], where: str) -> Message:
    """The message with these parts, of which each counts as much as its weight says.

    Raises:
        RowError: a part that is no text counts less than others do.
    """
    stretches: list[Stretch] = []
    thought: float | None = None
    for part, weight in zip(parts, weights, strict=True):
        if part.type in THOUGHTS:
            if thought not in (None, weight):
                raise RowError(f"{where} trains some of its reasoning and not all.", fix="Give it in one part.")
            thought = weight
        elif part.text is not None:
            start = stretches[-1].end if stretches else 0
            stretches.append(Stretch(start, start + len(part.text), weight))
        elif weight != usual_weight(message):
            raise RowError(
                f'{where} trains some of its parts, and not the one of type "{part.type}", which is not a text.',
                fix="Give it a message of its own, with train: false.",
            )
    return _kept(attrs.evolve(message, content=list(parts)), stretches, thought)


def _kept(message: Message, stretches: Sequence[Stretch], thought: float | None) -> Message:
    """The message with these details, or with one mark for all of it if they agree."""
    stretches = [one for one in stretches if one.start < one.end]
    weights = {one.weight for one in stretches} | ({thought} - {None})
    trained = message.train if message.train is not None else any(weights)
    if weights <= {0.0} or weights == {usual_weight(message)}:
        return attrs.evolve(message, train=trained) if weights else message
    entries: list[dict[str, Any]] = [
        {"begin_offset": one.start, "end_offset": one.end - 1, "train": one.weight > 0, "weight": one.weight}
        for one in stretches
    ]
    if thought is not None:
        entries.append({"of": "reasoning", "train": thought > 0, "weight": thought})
    return attrs.evolve(message, train=trained, extra={**message.extra, DETAIL: entries})


def usual_weight(message: Message) -> float:
    """How much the message counts where it says no more."""
    return 1.0 if message.weight is None else message.weight


def _entries(value: Any, name: str, where: str) -> list[Mapping[str, Any]]:
    found = from_json(value, f'{where}: "{name}"', fix=_FIX) if isinstance(value, str) else value
    if isinstance(found, Mapping):
        columns = list(found.values())
        if columns and all(isinstance(one, (list, tuple)) for one in columns):
            # what `datasets` makes of a sequence of mappings
            found = [dict(zip(found, one, strict=False)) for one in zip(*columns, strict=False)]
        else:
            found = [found]
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, Mapping) for one in found):
        raise RowError(f'{where}: "{name}" is not a list of stretches: {shortened(value)}.', fix=_FIX)
    return list(found)


def _weight_of(entry: Mapping[str, Any], name: str, where: str, usual: float) -> float:
    train, weight = entry.get("train"), entry.get("weight")
    if isinstance(train, (bool, int, float)) and train in (0, 1):
        if weight is None or not train:
            return usual if train else 0.0
        if isinstance(weight, (int, float)) and 0 <= weight <= 1:
            return float(weight)
    raise _unreadable(entry, name, where)


def _stretch(entry: Mapping[str, Any], weight: float, name: str, where: str) -> Stretch:
    first, last = (_offset(entry.get(key)) for key in ("begin_offset", "end_offset"))
    if first is None or last is None or last < first:
        raise _unreadable(entry, name, where)
    return Stretch(first, last + 1, weight)


def _offset(value: Any) -> int | None:
    """A place in a text, also as a number with a point, which tables make of one; None for anything else."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if whole and not isinstance(value, bool) and value >= 0 else None


def _unreadable(entry: Mapping[str, Any], name: str, where: str) -> RowError:
    return RowError(f'{where}: "{name}" holds {shortened(dict(entry))}, which cannot be read.', fix=_FIX)


def _covered(stretches: Sequence[Stretch], length: int, where: str) -> list[Stretch]:
    """The stretches with those between them, which do not count."""
    found: list[Stretch] = []
    at = 0
    for one in stretches:
        if one.end > length:
            raise RowError(
                f"{where}: a stretch goes to character {one.end - 1}, and the last of its content is {length - 1}.",
                fix=_FIX,
            )
        if one.start < at:
            raise RowError(f"{where}: two stretches hold character {one.start}.", fix=_FIX)
        found += [Stretch(at, one.start, 0.0), one]
        at = one.end
    return [*found, Stretch(at, length, 0.0)]
