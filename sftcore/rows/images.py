"""The images of a row, and the places for them in its messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen

from sftcore.core.errors import RowError
from sftcore.core.types import IMAGE, Example, Message, Part, Row

_TYPES = ("image", "image_url", "input_image")
"""The types of parts that stand for an image: of chat templates, and of OpenAI's two interfaces."""
_IMAGE_KEYS = ("image", "image_url", "url", "path", "bytes", "base64", "source")
"""The keys under which such a part may hold its image; `source` is Anthropic's."""
_SIZE_KEYS = ("min_pixels", "max_pixels", "image_size", "resized_width", "resized_height")
"""The keys with which a part says what size its image is to have."""
_OTHER_MEDIA = ("video", "video_url", "audio", "audio_url", "input_audio", "file", "document")
"""Parts that are neither texts nor images, and that are not read as texts either."""


@frozen
class Twice:
    """An image that a part of a message holds, and that stands in a column of its row too; `places` names both."""

    part: Any
    column: Any
    places: str


def images_of(row: Row, *columns: str) -> list[Any]:
    """The row's images, from whichever of these columns holds an image or a list of images."""
    found = {name: row[name] for name in columns if not _is_empty(row.get(name))}
    if len(found) > 1:
        raise RowError(f"the row has images in {' and '.join(found)}.", fix="Keep them in one column.")
    values: Any = next(iter(found.values()), [])
    return list(values) if isinstance(values, (list, tuple)) and not _is_pixels(values) else _listed(values)


def with_own_images(example: Example) -> Example:
    """The example with the images that the parts of its messages hold, where the format left them there."""
    if example.images:
        return example
    turns = [*(example.messages or ()), *_turns(example.prompt), *_turns(example.completion)]
    if not any(part.type in _TYPES for turn in turns for part in _parts(turn)):
        return example
    placed, images = place_images(turns, (), "", beside=[one.modality.name for one in example.media])
    if example.messages is not None:
        return attrs.evolve(example, messages=placed, images=images)
    asked = len(_turns(example.prompt))
    return attrs.evolve(example, prompt=placed[:asked], completion=placed[asked:], images=images)


def place_images(
    messages: Sequence[Message], images: Sequence[Any], marker: str, *, beside: Sequence[str] = ()
) -> tuple[list[Message], list[Any]]:
    """Messages with a part of type "image" for each image, and the images in the order of these parts.

    An image placeholder is the `marker` in a text (no text where it is empty), or a part of type "image" (or OpenAI's
    "image_url" and "input_image"), which may also hold its own image. `images` fill the parts that hold none; if there
    are as many as all parts, each stands for the part in its place, and is compared with the image that it holds.
    Without placeholders, the images are put before the first user's words. Parts of the types
    `beside` are left as they are.

    Raises:
        RowError: the numbers of images and placeholders differ, or a part is neither an image nor a text.
    """
    parted = [_parted(message, i, marker, beside) for i, message in enumerate(messages)]
    if images and not any(part.type == "image" for message in parted for part in _parts(message)):
        parted = _with_images_first(parted, len(images))
    held = [_held(part) for message in parted for part in _parts(message) if part.type == "image"]
    empty = sum(one is None for one in held)
    if len(images) not in (empty, len(held)):
        own = (
            "" if empty == len(held) else f", and {len(held) - empty} that hold{'s' * (len(held) - empty == 1)} its own"
        )
        raise RowError(
            f"the row has {len(images)} image{'s' * (len(images) != 1)}, but its messages have "
            f"{empty} image placeholder{'s' * (empty != 1)}{own}.",
            fix=_how_to_give(() if images else parted, marker or IMAGE),
        )
    if len(images) == empty:
        left = iter(images)
        found = [next(left) if one is None else one for one in held]
    else:
        pairs = enumerate(zip(held, images, strict=True))
        found = [column if part is None else _both(part, column, i) for i, (part, column) in pairs]
    return [_without_held(one) for one in parted], found


def _how_to_give(messages: Sequence[Message], marker: str) -> str:
    """What a row needs that has other images than places for them; a part may hold its own where it is not found."""
    parts = (part for message in messages for part in _parts(message) if part.type == "image" and _held(part) is None)
    keys = [key for part in parts for key, value in part.extra.items() if value is not None and key not in _SIZE_KEYS]
    if unread := next((key for key in keys if key not in (*_IMAGE_KEYS, "detail")), None):
        read = ", ".join(_IMAGE_KEYS)
        return f'A part has "{unread}", which is not read as an image. The keys that are read are {read}.'
    return f'A placeholder is {marker} in a text, or a part {{"type": "image"}}. Give one for each image.'


def _both(part: Any, column: Any, number: int) -> Any:
    """The image, if a part and a column hold the same; otherwise both, to be compared where they are opened."""
    if type(part) is type(column) and isinstance(part, (str, bytes)) and part == column:
        return part
    return Twice(part, column, f"image {number} of the messages and image {number} of the column")


def _turns(value: Any) -> Sequence[Message]:
    return value if value is not None and not isinstance(value, str) else ()


def _is_empty(value: Any) -> bool:
    """Whether a column holds no image: null, an empty text or list, or a mapping with nothing in it."""
    if value is None or isinstance(value, (str, list, tuple)):
        return not value
    return isinstance(value, Mapping) and all(part is None for part in value.values())


def _is_pixels(values: Sequence[Any]) -> bool:
    """Whether a list is one picture, as Arrow keeps the array of its pixels: rows of numbers or of colours."""
    first: Any = values
    for depth in range(3):
        if not isinstance(first, (list, tuple)) or not first:
            return False
        first = first[0]
        if isinstance(first, (int, float)):
            return depth > 0
    return False


def _listed(values: Any) -> list[Any]:
    """One image, or an array of four dimensions (images, height, width, colours) or of objects as its images."""
    shape, kind = getattr(values, "shape", None), getattr(getattr(values, "dtype", None), "kind", "")
    return list(values) if shape is not None and (len(shape) == 4 or kind == "O") else [values]


def _parts(message: Message) -> Sequence[Part]:
    return message.content if message.content is not None and not isinstance(message.content, str) else ()


def _parted(message: Message, index: int, marker: str, beside: Sequence[str]) -> Message:
    """The message with its content split into parts if it holds an image."""
    content = message.content
    if isinstance(content, str):
        return attrs.evolve(message, content=_split(content, marker)) if marker and marker in content else message
    parts: list[Part] = []
    for part in _parts(message):
        if part.type in _OTHER_MEDIA and part.type not in beside:
            raise RowError(f'message {index} has a part of type "{part.type}", but only texts and images can be read.')
        if part.type in _TYPES:
            parts.append(part if part.type == "image" else attrs.evolve(part, type="image"))
        elif part.type == "text" and part.text is not None and marker and marker in part.text:
            parts += _split(part.text, marker)
        else:
            parts.append(part)
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
    """The image that a part itself holds, with the size that it asks for, or None."""
    key = next((name for name in _IMAGE_KEYS if not _is_empty(part.extra.get(name))), None) if part.extra else None
    if key is None:
        return None
    found = part.extra[key]
    if key == "image_url" and isinstance(found, Mapping) and "url" in found:
        found = found["url"]
        if found is None:
            return None
    elif key in ("bytes", "base64"):
        found = {key: found}
    asked = {name: part.extra[name] for name in _SIZE_KEYS if part.extra.get(name) is not None}
    return {"image": found, **asked} if asked else found


def _without_held(message: Message) -> Message:
    """The message as templates read it, without the images themselves."""
    parts = _parts(message)
    if not any(part.extra and part.type == "image" for part in parts):
        return message
    kept = [attrs.evolve(part, extra={}) if part.type == "image" else part for part in parts]
    return attrs.evolve(message, content=kept)
