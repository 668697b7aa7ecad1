"""The images of a data set, counted for its report."""

from __future__ import annotations

from attrs import define, evolve, field, frozen

from sftcore.core.errors import RowError
from sftcore.data.images.reference import open_image
from sftcore.data.pipeline import Inspected


@frozen
class Images:
    """Images of the rows that are not refused.

    Sizes are in pixels and tokens those of one image; None and 0 where no model says how images are processed.
    """

    rows: int
    images: int
    tokens: int
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    fewest: int
    most: int


def with_broken_images(one: Inspected) -> Inspected:
    """The row as refused where one of its images cannot be decoded, which a run would find in the middle of its way."""
    try:
        for picture in one.pictures:
            open_image(picture.source, max_pixels=picture.width * picture.height)
    except RowError as error:
        return evolve(one, error=error)
    return one


@define
class ImageCounts:
    """Counts images as rows are looked at; it grows by different sizes, not by rows."""

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
        """What was counted; None where no row has images."""
        if not self._rows:
            return None
        sizes = sorted((width * height, width, height) for width, height, _ in self._sizes)
        tokens = sorted(count for _, _, count in self._sizes) or [0]
        smallest, largest = (sizes[0][1:], sizes[-1][1:]) if sizes else (None, None)
        return Images(self._rows, self._images, self._tokens, smallest, largest, tokens[0], tokens[-1])
