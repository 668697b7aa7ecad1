"""Marks of what counts for the loss, as other libraries write them on messages and on parts of their content."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from sftcore.core.errors import RowError
from sftcore.core.types import Message, Part
from sftcore.rows.details import NAMES, as_details, usual_weight, with_details

_FLAGS = {
    **dict.fromkeys(("train", "loss", "loss_mask", "trainable"), True),
    **dict.fromkeys(("training", "do_train", "supervised", "compute_loss", "calculate_loss"), True),
    **dict.fromkeys(("supervise", "is_trained", "is_trainable", "trained", "has_loss", "use_loss"), True),
    **dict.fromkeys(("masked", "is_masked", "mask_loss", "no_loss", "ignore_loss", "skip_loss"), False),
}
"""Keys that say whether something is trained, and the value with which it is, in several libraries."""

_WEIGHTS = ("weight", "loss_weight", "loss_scale")
"""Keys that say how much something counts: OpenAI's, and ms-swift's."""

_REFUSED = {
    "mask": "which says in one library what counts, and in another what does not",
    "ignore": "which may say that the turn is not trained, or that it is not there",
}

_MARKS = frozenset((*_FLAGS, *_WEIGHTS, *_REFUSED))

_PARTS_MARKS = _MARKS | {"label"}
_DETAILS = frozenset(NAMES)
_SILENT = ("image", "image_url", "input_image", "video", "audio")
"""Parts that nobody is trained to say."""

_FIX = 'Give "train" (true or false) or "weight" (0.0 to 1.0) to the whole message.'


def as_marked(message: Message, where: str) -> Message:
    """The message with `train` and `weight` where it, or each of its parts, has another library's marks.

    Where some of it is trained and some is not, its `extra` holds the details (see sftcore.rows.details).

    Raises:
        RowError: a mark cannot be read, or two of them differ.
    """
    if message.extra and not _MARKS.isdisjoint(message.extra):
        train, weight, rest = _read(message.extra, where)
        message = attrs.evolve(_counting(message, train, weight, where), extra=rest)
    content = message.content
    if content and not isinstance(content, str) and not all(_PARTS_MARKS.isdisjoint(part.extra) for part in content):
        message = _as_parts_are_marked(message, content, where)
    return with_details(message, where) if message.extra and not _DETAILS.isdisjoint(message.extra) else message


def _as_parts_are_marked(message: Message, parts: Sequence[Part], where: str) -> Message:
    read = [_read(_labelled(part.extra), where) for part in parts]
    bare = [attrs.evolve(part, extra=rest) for part, (_, _, rest) in zip(parts, read, strict=True)]
    speaks = [part.type not in _SILENT for part in parts]
    marks = {(train, weight) for (train, weight, _), said in zip(read, speaks, strict=True) if said}
    if len(marks) < 2:
        train, weight = marks.pop() if marks else (None, None)
        return attrs.evolve(_counting(message, train, weight, where), content=bare)
    if not _DETAILS.isdisjoint(message.extra):
        raise RowError(f"{where} has marks on its parts and details for its characters.", fix="Keep one of them.")
    for train, weight in marks:
        _counting(message, train, weight, where)  # two weights that differ
    usual = usual_weight(message)
    weights = [0.0 if train is False else usual if weight is None else weight for train, weight, _ in read]
    return as_details(message, bare, weights, where)


def _labelled(keys: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of a part; a segment of Axolotl's says in `label` whether it is trained."""
    if not isinstance(keys.get("label"), bool):
        return keys
    return {"train": keys["label"], **{key: value for key, value in keys.items() if key != "label"}}


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
