"""Videos and other media of a row, and the places for them in its messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from sftcore.core.errors import RowError
from sftcore.core.types import Message, Part, Row


def media_of(row: Row, one: str, several: str) -> list[Any]:
    """The row's media, from the column `one`, which holds a single one, or `several`, which holds a list of them.

    Raises:
        RowError: both hold some.
    """
    found = {name: row[name] for name in (one, several) if _holds(row.get(name))}
    if len(found) > 1:
        raise RowError(f"the row has something in {one} and in {several}.", fix="Keep one of these columns.")
    if one in found:
        value = found[one]
        return list(value) if isinstance(value, (list, tuple)) and len(value) == 1 else [value]
    value = found.get(several, [])
    if getattr(value, "ndim", 0) == 4:
        return [value]  # one array of frames
    return list(value) if isinstance(value, (list, tuple)) or hasattr(value, "ndim") else [value]


def place_media(
    messages: Sequence[Message], held: Sequence[Any], kind: str, *, marked: bool = True
) -> tuple[list[Message], list[Any]]:
    """Messages with a part of type `kind` for each medium, and the media in the order of these parts.

    For the kind "video", a placeholder is "<video>" in a text, or a part of type "video" ("video_url", "input_video"),
    which may also hold its own. Without placeholders, media are put before the first user's words. Other parts are left
    as they are, and texts that are not `marked`.

    Raises:
        RowError: the numbers of media and empty placeholders differ.
    """
    marker = f"<{kind}>" if marked else ""
    if not held and not _has_place(messages, spellings(kind), marker):
        return list(messages), []
    parted = [_parted(message, kind, marker) for message in messages]
    if held and not any(part.type == kind for message in parted for part in _parts(message)):
        parted = _first(parted, kind, len(held))
    found = [_own(part, kind) for message in parted for part in _parts(message) if part.type == kind]
    empty = sum(one is None for one in found)
    if empty != len(held):
        raise RowError(
            f"the row has {len(held)} {kind}{'s' * (len(held) != 1)}, but its messages have {empty} {kind} "
            f"placeholder{'s' * (empty != 1)}.",
            fix=f'A placeholder is <{kind}> in a text, or a part {{"type": "{kind}"}}. Give one for each {kind}.',
        )
    left = iter(held)
    return [_bare(message, kind) for message in parted], [next(left) if one is None else one for one in found]


def spellings(kind: str) -> tuple[str, ...]:
    """What the type of a part is called that stands for such a medium."""
    return (kind, f"{kind}_url", f"input_{kind}")


def _holds(value: Any) -> bool:
    return value is not None and (not hasattr(value, "__len__") or len(value) > 0)


def _parts(message: Message) -> Sequence[Part]:
    return message.content if message.content is not None and not isinstance(message.content, str) else ()


def _has_place(messages: Sequence[Message], types: Sequence[str], marker: str) -> bool:
    """Whether there is any placeholder, which most rows of other media have none of."""
    for message in messages:
        if isinstance(message.content, str):
            if marker and marker in message.content:
                return True
            continue
        for part in _parts(message):
            if part.type in types or (marker and part.text is not None and marker in part.text):
                return True
    return False


def _parted(message: Message, kind: str, marker: str) -> Message:
    content = message.content
    if isinstance(content, str):
        return attrs.evolve(message, content=_split(content, kind, marker)) if marker and marker in content else message
    parts: list[Part] = []
    for part in _parts(message):
        if part.type in spellings(kind):
            part = attrs.evolve(part, type=kind)
        marked = part.type == "text" and part.text is not None and marker and marker in part.text
        parts += _split(str(part.text), kind, marker) if marked else [part]
    return message if content is None else attrs.evolve(message, content=parts)


def _split(text: str, kind: str, marker: str) -> list[Part]:
    pieces = text.split(marker)
    return [
        part
        for i, piece in enumerate(pieces)
        for part in ([Part(kind)] if i else []) + ([Part("text", piece)] if piece else [])
    ]


def _first(messages: Sequence[Message], kind: str, count: int) -> list[Message]:
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        raise RowError(f"the row has {kind}s, but no user message to put them in.")
    message = messages[first]
    words = [Part("text", message.content)] if isinstance(message.content, str) else list(_parts(message))
    placed = attrs.evolve(message, content=[*[Part(kind)] * count, *words])
    return [*messages[:first], placed, *messages[first + 1 :]]


def _own(part: Part, kind: str) -> Any:
    """What a part itself holds, with what stands beside it, or None."""
    held: Mapping[str, Any] = {key: value for key, value in part.extra.items() if value is not None}
    keys = (kind, f"{kind}_url", "url", "path", "bytes", "frames")
    return dict(held) if any(key in held for key in keys) else None


def _bare(message: Message, kind: str) -> Message:
    """The message as templates read it, without the media themselves."""
    parts = _parts(message)
    if not any(part.extra and part.type == kind for part in parts):
        return message
    kept = [attrs.evolve(part, extra={}) if part.type == kind else part for part in parts]
    return attrs.evolve(message, content=kept)
