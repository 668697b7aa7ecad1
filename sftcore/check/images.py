"""Counts the images of a data set for its report."""

from __future__ import annotations

from attrs import define, evolve, field, frozen

from sftcore.core.errors import RowError
from sftcore.data.images.reference import open_image
from sftcore.data.pipeline import Inspected


@frozen
class Images:
    """Images of the rows that are not refused.

    smallest, largest: sizes in pixels. fewest, most: tokens of one image. These are None and 0 without a model, which
    decides how images are processed.
    """

    rows: int
    images: int
    tokens: int
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    fewest: int
    most: int


def with_broken_images(one: Inspected) -> Inspected:
    """Mark the row as refused if one of its images cannot be decoded, which would stop a run half-way."""
    try:
        for picture in one.pictures:
            open_image(picture.source, max_pixels=picture.width * picture.height)
    except RowError as error:
        return evolve(one, error=error)
    return one


@define
class ImageCounts:
    """Counts images row by row; its memory grows with the number of different sizes, not of rows."""

    _rows: int = field(default=0, init=False)
    _images: int = field(default=0, init=False)
    _tokens: int = field(default=0, init=False)
    _sizes: set[tuple[int, int, int]] = field(factory=set, init=False)

    def add(self, one: Inspected) -> None:
        """Count the images of an example."""
        if one.example is None or not one.example.images:
            return
        self._rows += 1
        self._images += len(one.example.images)
        self._tokens += sum(picture.num_tokens for picture in one.pictures)
        self._sizes.update((picture.width, picture.height, picture.num_tokens) for picture in one.pictures)

    def result(self) -> Images | None:
        """The counts, or None if no row has images."""
        if not self._rows:
            return None
        sizes = sorted((width * height, width, height) for width, height, _ in self._sizes)
        tokens = sorted(count for _, _, count in self._sizes) or [0]
        smallest, largest = (sizes[0][1:], sizes[-1][1:]) if sizes else (None, None)
        return Images(self._rows, self._images, self._tokens, smallest, largest, tokens[0], tokens[-1])
