"""Counts the images and other media of a data set for its report."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from attrs import define, evolve

from sftcore.check.text import turns_of
from sftcore.core.errors import RowError
from sftcore.core.types import Example
from sftcore.data.images.reference import open_image
from sftcore.data.pipeline import Inspected


@define
class Images:
    """Images of the rows that are not refused.

    smallest, largest: sizes in pixels. fewest, most: tokens of one image. These are None and 0 without a model, which
    decides how images are processed.
    """

    rows: int = 0
    images: int = 0
    tokens: int = 0
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    fewest: int = 0
    most: int = 0

    def add(self, one: Inspected) -> None:
        """Count the images of an example."""
        if one.example is None or not one.example.images:
            return
        self.rows += 1
        self.images += len(one.example.images)
        for picture in one.pictures:
            size, tokens = (picture.width, picture.height), picture.num_tokens
            self.tokens += tokens
            self.smallest = min(self.smallest or size, size, key=math.prod)
            self.largest = max(self.largest or size, size, key=math.prod)
            self.fewest = min(self.fewest or tokens, tokens)
            self.most = max(self.most, tokens)


@define
class Media:
    """Media of one kind, such as videos, of the rows that are not refused; tokens are 0 without a model."""

    kind: str
    rows: int = 0
    count: int = 0
    tokens: int = 0
    fewest: int = 0
    most: int = 0

    def add(self, one: Inspected) -> None:
        """Count the media of this kind of an example."""
        held = [] if one.example is None else [each for each in one.example.media if each.modality.name == self.kind]
        if not held:
            return
        self.rows += 1
        self.count += len(held)
        for tokens in (each.num_tokens for each in one.media if each.kind == self.kind):
            self.tokens += tokens
            self.fewest = min(self.fewest or tokens, tokens)
            self.most = max(self.most, tokens)


def identity_of(example: Example) -> str:
    """What tells examples with the same words apart: their images and media, by content or by name; or nothing."""
    contents = (turn.content for turn in turns_of(example) if turn.content and not isinstance(turn.content, str))
    held = [part.extra for content in contents for part in content if part.type != "text" and part.extra]
    return "|".join(map(_identity, [*example.images, *(one.value for one in example.media), *held]))


def _identity(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={_identity(part)}" for key, part in value.items() if part is not None)
    if isinstance(value, (list, tuple)):
        return ",".join(map(_identity, value))
    data = value.tobytes() if hasattr(value, "tobytes") else value
    return blake2b(data, digest_size=16).hexdigest() if isinstance(data, (bytes, bytearray)) else str(value)


def with_broken_media(one: Inspected) -> Inspected:
    """Mark the row as refused if an image or another medium cannot be decoded, which would stop a run half-way."""
    try:
        for picture in one.pictures:
            open_image(picture.source, sys.maxsize)
        for medium in one.media:
            medium.modality.open(medium.reference)
    except RowError as error:
        return evolve(one, error=error)
    return one
