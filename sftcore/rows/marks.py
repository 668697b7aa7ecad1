"""Marks of what counts for the loss, as other libraries write them on messages and on parts of their content."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from sftcore.core.errors import RowError
from sftcore.core.types import Message, Part

_FLAGS = {"train": True, "loss": True, "loss_mask": True, "trainable": True, "masked": False}
"""Keys that say whether something is trained, and the value with which it is: ms-swift's, verl's, Axolotl's."""

_WEIGHTS = ("weight", "loss_weight", "loss_scale")
"""Keys that say how much something counts: OpenAI's, and ms-swift's."""

_REFUSED = {
    "mask": "which says in one library what counts, and in another what does not",
    "training_detail": "which says for single characters whether they count",
}

_MARKS = frozenset((*_FLAGS, *_WEIGHTS, *_REFUSED))

_FIX = 'Give "train" (true or false) or "weight" (0.0 to 1.0) to the whole message.'


def as_marked(message: Message, where: str) -> Message:
    """The message with `train` and `weight` where it, or each of its parts, has another library's marks.

    Raises:
        RowError: a mark cannot be read, two of them differ, or some parts are trained and others are not.
    """
    if message.extra and not _MARKS.isdisjoint(message.extra):
        train, weight, rest = _read(message.extra, where)
        message = attrs.evolve(_counting(message, train, weight, where), extra=rest)
    if isinstance(message.content, str) or not message.content:
        return message
    if all(_MARKS.isdisjoint(part.extra) for part in message.content):
        return message
    return _as_parts_are_marked(message, message.content, where)


def _as_parts_are_marked(message: Message, parts: Sequence[Part], where: str) -> Message:
    read = [_read(part.extra, where) for part in parts]
    marks = {(train, weight) for train, weight, _ in read}
    if len({_share(*one) for one in marks}) > 1:
        raise RowError(
            f"{where} trains some of its parts and not others.", fix=f"Split it into messages, or g{_FIX[1:]}"
        )
    bare = [attrs.evolve(part, extra=rest) for part, (_, _, rest) in zip(parts, read, strict=True)]
    train, weight = next((one for one in marks if one != (None, None)), (None, None))
    return attrs.evolve(_counting(message, train, weight, where), content=bare)


def _share(train: bool | None, weight: float | None) -> float | None:
    """How much of it counts, None where nothing says so."""
    if train is None and weight is None:
        return None
    return 0.0 if train is False else 1.0 if weight is None else weight


def _counting(message: Message, train: bool | None, weight: float | None, where: str) -> Message:
    if None not in (message.weight, weight) and message.weight != weight:
        raise RowError(f"{where} has two weights that differ: {message.weight:g} and {weight:g}.", fix="Keep one.")
    return attrs.evolve(
        message,
        train=message.train if train is None else train and message.train is not False,
        weight=message.weight if weight is None else weight,
    )


def _read(keys: Mapping[str, Any], where: str) -> tuple[bool | None, float | None, dict[str, Any]]:
    """What the marks among these keys say together, and the other keys."""
    if _MARKS.isdisjoint(keys):
        return None, None, dict(keys)
    train: bool | None = None
    weight: float | None = None
    for key in keys:
        value = keys[key]
        if key not in _MARKS or value is None or (key in _REFUSED and value in ([], "")):
            continue
        if key in _REFUSED:
            raise RowError(f'{where} has "{key}", {_REFUSED[key]}.', fix=_FIX)
        if key in _FLAGS and isinstance(value, (bool, int, float)) and value in (0, 1):
            train = (bool(value) is _FLAGS[key]) and train is not False
        elif key in (*_WEIGHTS, "loss") and _is_share(value) and weight in (None, float(value)):
            weight = float(value)
        else:
            shown = json.dumps(value, ensure_ascii=False, default=str)
            raise RowError(f'{where} has "{key}": {shown:.60}, which cannot be read.', fix=_FIX)
    return train, weight, {key: value for key, value in keys.items() if key not in _MARKS}


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
