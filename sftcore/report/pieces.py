"""Token rows as text: the smallest groups of tokens that decode to whole characters, and which are supervised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from attrs import frozen

from sftcore.core.types import IGNORED, TokenizedRow
from sftcore.core.visible import visible
from sftcore.data.images.pictures import Picture
from sftcore.data.media.modality import SeenMedium


@frozen
class Piece:
    """The smallest group of tokens that decodes to whole characters.

    `position` is that of its first token in the document. `weight` is 0 if the tokens are not supervised. `cut` is set
    if max_length cuts the tokens away. The tokens of an image are one piece, with its `picture`, and those of another
    medium, such as a video, one with its `medium`.
    """

    text: str
    ids: tuple[int, ...]
    position: int
    weight: float = 0.0
    special: bool = False
    cut: bool = False
    picture: Picture | None = None
    medium: SeenMedium | None = None


def pieces_of(row: TokenizedRow, tokenizer: Any, start: int = 0) -> list[Piece]:
    """The tokens of one document as text; `start` is the position of the first token."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    labels = row.input_ids if row.labels is None else row.labels
    weights: Sequence[float] = row.weights or [1.0] * len(row.input_ids)
    pieces = []
    for first, last, text in _texts(row.input_ids, tokenizer):
        ids = tuple(row.input_ids[first:last])
        # the first token of a document has no token before it from which it could be predicted
        counted = [i for i in range(first, last) if labels[i] != IGNORED and start + i > 0]
        weight = max((float(weights[i]) for i in counted), default=0.0)
        pieces.append(Piece(visible(text), ids, start + first, weight, ids[0] in special))
    return pieces


def with_media(pieces: Sequence[Piece], pictures: Sequence[Picture], media: Sequence[SeenMedium] = ()) -> list[Piece]:
    """The pieces, with the tokens of each image and of each other medium joined into one."""
    held: list[Picture | SeenMedium] = [*pictures, *media]
    places = sorted(held, key=lambda one: one.first)
    counts: Counter[str] = Counter()
    shown: list[Piece] = []
    number, last = 0, -1
    for piece in pieces:
        while number < len(places) and piece.position >= places[number].last:
            number += 1
        if number == len(places) or piece.position < places[number].first:
            shown.append(piece)
        elif number == last:
            shown[-1] = attrs.evolve(shown[-1], ids=(*shown[-1].ids, *piece.ids))
        else:
            place, last = places[number], number
            shows: dict[str, Any] = {"picture": place} if isinstance(place, Picture) else {"medium": place}
            kind = "image" if isinstance(place, Picture) else place.kind
            counts[kind] += 1
            text = f"[{kind} {counts[kind]}: {place.num_tokens} tokens]"
            shown.append(attrs.evolve(piece, text=text, special=True, **shows))
    return shown


def _texts(ids: Sequence[int], tokenizer: Any) -> Iterator[tuple[int, int, str]]:
    """The smallest groups of tokens, from `first` to `last` (exclusive), that decode to whole characters.

    Each group is decoded together with the one before it, since some tokenizers drop a space at the start of a text.
    """

    def decoded(tokens: Sequence[int]) -> str:
        text: str = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    before = first = 0
    for last in range(1, len(ids) + 1):
        context, text = decoded(ids[before:first]), decoded(ids[before:last])
        # an incomplete character is decoded as U+FFFD; a character has at most four bytes
        if text.endswith("\ufffd") and last - first < 4 and last < len(ids):
            continue
        yield first, last, text[len(context) :]
        before, first = first, last


def documents_of(block: dict[str, Any]) -> Iterator[tuple[int, TokenizedRow]]:
    """The documents of a block, each with the position of its first token."""
    whole, start = TokenizedRow(block["input_ids"], block["labels"], block.get("weights")), 0
    for length in block["seq_lengths"]:
        yield start, part_of(whole, slice(start, start + length))
        start += length


def part_of(row: TokenizedRow, part: slice) -> TokenizedRow:
    """The tokens of a row from one index to another, with their labels and weights."""
    labels = None if row.labels is None else row.labels[part]
    return TokenizedRow(row.input_ids[part], labels, None if row.weights is None else row.weights[part])
