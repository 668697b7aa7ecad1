"""The images of a row, and the places for them in its messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from sftcore.core.errors import RowError
from sftcore.core.types import Message, Part, Row

_IMAGE_KEYS = ("image", "image_url", "url", "path", "bytes", "base64")
"""The keys under which a part of type "image" may hold its image."""


def images_of(row: Row, *columns: str) -> list[Any]:
    """The row's images, from whichever of these columns holds an image or a list of images."""
    found = {name: row[name] for name in columns if row.get(name) is not None and row[name] != []}
    if len(found) > 1:
        raise RowError(f"the row has images in {' and '.join(found)}.", fix="Keep them in one column.")
    values: Any = next(iter(found.values()), [])
    return list(values) if isinstance(values, (list, tuple)) else [values]


def place_images(messages: Sequence[Message], images: Sequence[Any], marker: str) -> tuple[list[Message], list[Any]]:
    """Messages with a part of type "image" for each image, and the images in the order of these parts.

    An image placeholder is the `marker` in a text, or a part of type "image" (or OpenAI's "image_url"), which may also
    hold its own image. Without placeholders, the images are put before the first user's words.

    Raises:
        RowError: the numbers of images and empty placeholders differ, or a part is neither an image nor a text.
    """
    parted = [_parted(message, i, marker) for i, message in enumerate(messages)]
    if images and not any(part.type == "image" for message in parted for part in _parts(message)):
        parted = _with_images_first(parted, len(images))
    held = [_held(part) for message in parted for part in _parts(message) if part.type == "image"]
    empty = sum(one is None for one in held)
    if empty != len(images):
        raise RowError(
            f"the row has {len(images)} image{'s' * (len(images) != 1)}, but its messages have "
            f"{empty} image placeholder{'s' * (empty != 1)}.",
            fix=f'A placeholder is {marker} in a text, or a part {{"type": "image"}}. Give one for each image.',
        )
    left = iter(images)
    return [_without_held(one) for one in parted], [next(left) if one is None else one for one in held]


def _parts(message: Message) -> Sequence[Part]:
    return message.content if message.content is not None and not isinstance(message.content, str) else ()


def _parted(message: Message, index: int, marker: str) -> Message:
    """The message with its content split into parts if it holds an image."""
    content = message.content
    if isinstance(content, str):
        return attrs.evolve(message, content=_split(content, marker)) if marker in content else message
    parts: list[Part] = []
    for part in _parts(message):
        if part.type == "image_url":
            part = attrs.evolve(part, type="image")
        if part.type not in ("image", "text"):
            raise RowError(f'message {index} has a part of type "{part.type}", but only texts and images can be read.')
        parts += _split(part.text, marker) if part.text is not None and marker in part.text else [part]
    return message if content is None else attrs.evolve(message, content=parts)


def _split(text: str, marker: str) -> list[Part]:
    """A text with an image part in place of each marker.

    >>> [part.text or part.type for part in _split("<image>Who?<image>", "<image>")]
    ['image', 'Who?', 'image']
    """
    pieces = text.split(marker)
    return [
        part
        for i, piece in enumerate(pieces)
        for part in ([Part("image")] if i else []) + ([Part("text", piece)] if piece else [])
    ]


def _with_images_first(messages: Sequence[Message], count: int) -> list[Message]:
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        raise RowError("the row has images, but no user message to put them in.")
    message = messages[first]
    words = [Part("text", message.content)] if isinstance(message.content, str) else list(_parts(message))
    added = [Part("image")] * count
    return [*messages[:first], attrs.evolve(message, content=[*added, *words]), *messages[first + 1 :]]


def _held(part: Part) -> Any:
    """The image that a part itself holds, or None."""
    found = next((part.extra[name] for name in _IMAGE_KEYS if part.extra.get(name) is not None), None)
    return found.get("url") if isinstance(found, Mapping) and set(found) & {"url"} else found


def _without_held(message: Message) -> Message:
    """The message as templates read it, without the images themselves."""
    parts = [attrs.evolve(part, extra={}) if part.type == "image" else part for part in _parts(message)]
    return attrs.evolve(message, content=parts) if parts else message
