"""Counts the images of a data set for its report."""

from __future__ import annotations

import math
import sys

from attrs import define, evolve

from sftcore.core.errors import RowError
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


def with_broken_images(one: Inspected) -> Inspected:
    """Mark the row as refused if one of its images cannot be decoded, which would stop a run half-way."""
    try:
        for picture in one.pictures:
            open_image(picture.source, sys.maxsize)
    except RowError as error:
        return evolve(one, error=error)
    return one
