"""Asks a processor what it makes of the text of a whole row, without decoding an image and without tokenizing.

Some processors look at more than the size of one image: LLaVA-OneVision cuts an image into tiles only if it is alone in
its row, PaliGemma puts its first token behind the last image, and Idefics2 joins what it writes around neighbours. So
the processor itself is called, with stand-ins in the places of its parts: images that have nothing but a size, an image
processor that remembers what it made of blank images of these sizes, and a tokenizer that takes the text and stops.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from attrs import frozen

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

_KEPT_BYTES = 64 << 20
"""How much of what image processors return is kept: masks and grids, pixels take no room."""
_LARGE = 1024
"""From how many floats on an array is taken for pixels, of which only the shape is kept."""


@frozen
class Piece:
    """A text between two images: `length` characters, at `before` in the row's text, at `after` in what the model
    reads."""

    before: int
    after: int
    length: int


@frozen
class WholeText:
    """A row's text as the model reads it, and where in it each image (first, last exclusive) and each text stands."""

    text: str
    images: tuple[tuple[int, int], ...]
    pieces: tuple[Piece, ...]


class WholeRows:
    """The texts of rows of one processor, whose placeholder of an image is `placeholder`."""

    def __init__(self, processor: Any, placeholder: str, *, nested: bool = True) -> None:
        self._processor = processor
        self._nested = nested
        self._placeholder = placeholder
        self._images = _Remembered(processor.image_processor)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is remembered: each process finds its own."""
        return {**self.__dict__, "_images": _Remembered(self._processor.image_processor)}

    def __call__(self, text: str, sizes: Sequence[Size]) -> WholeText:
        """What the model reads for this text, which has one placeholder for each image of these sizes.

        Raises:
            ValueError: the processor tokenizes nothing, or changes the words between images. It may raise others.
        """
        found, replaced = self._asked(text, sizes)
        pieces = text.split(self._placeholder)
        if not sizes:
            return WholeText(found, (), (Piece(0, _found(text, found, 0, len(found)), len(text)),))
        if replaced is None:
            return self._by_placeholders(found, pieces, sizes)
        if len(replaced) != len(sizes):
            raise ValueError(f"it replaces {len(replaced)} of {len(sizes)} images")
        ends = [0, *(last for _, last in replaced)]
        begins = [*(first for first, _ in replaced), len(found)]
        places = [_found(piece, found, *gap) for piece, gap in zip(pieces, zip(ends, begins, strict=True), strict=True)]
        return WholeText(found, tuple(replaced), self._pieces(pieces, places))

    def _asked(self, text: str, sizes: Sequence[Size]) -> tuple[str, list[tuple[int, int]] | None]:
        """The text that the processor would tokenize, and where it says that it put the images, if it does."""
        asked = copy.copy(self._processor)
        asked.image_processor = self._images
        asked.tokenizer = _Recorder(self._processor.tokenizer)
        said: list[Any] = []
        if replace := getattr(asked, "get_text_with_replacements", None):
            asked.get_text_with_replacements = _listened(replace, said)
        try:
            images = [_blank(size) for size in sizes]
            given = None if not images else [images] if self._nested else images
            asked(images=given, text=[text], add_special_tokens=False, return_tensors="pt")
        except _Recorded as recorded:
            found = recorded.text
        else:
            raise ValueError("it tokenizes no text")
        if isinstance(found, (list, tuple)) and len(found) == 1:
            found = found[0]
        if not isinstance(found, str):
            raise ValueError("it tokenizes no text")
        spans = [tuple(one["new_span"]) for one in said[-1] if one["type"] == "image"] if said else None
        return found, spans

    def _by_placeholders(self, found: str, pieces: Sequence[str], sizes: Sequence[Size]) -> WholeText:
        """Images found by their tokens, where the processor does not say where it put them."""
        token = self._placeholder
        counts = self._counts(found.count(token), sizes)
        edges, at = [], 0
        for count in counts:
            first = found.index(token, at)
            for _ in range(count):
                at = found.index(token, at) + len(token)
            edges.append((first, at))
        ends = [0, *(last for _, last in edges)]
        begins = [*(first for first, _ in edges), len(found)]
        places = [_found(piece, found, *gap) for piece, gap in zip(pieces, zip(ends, begins, strict=True), strict=True)]
        # neighbours share what stands between them, which is given to the first
        for number in range(1, len(pieces) - 1):
            if not pieces[number]:
                places[number] = begins[number]
        starts = [place + len(piece) for place, piece in zip(places, pieces, strict=True)][:-1]
        images = tuple(zip(starts, places[1:], strict=True))
        if not pieces[-1]:
            images = (*images[:-1], (images[-1][0], len(found)))
            places[-1] = len(found)
        return WholeText(found, images, self._pieces(pieces, places))

    def _counts(self, total: int, sizes: Sequence[Size]) -> list[int]:
        """How many of the placeholders in a text belong to each image."""
        if total == len(sizes):
            return [1] * total
        alone = [self._alone(size) for size in sizes]
        if sum(alone) == total:
            return alone
        if not total or total % len(sizes):
            raise ValueError(f"{total} image tokens cannot be told apart for {len(sizes)} images")
        return [total // len(sizes)] * len(sizes)

    def _alone(self, size: Size) -> int:
        return self._asked(self._placeholder, [size])[0].count(self._placeholder)

    def _pieces(self, pieces: Sequence[str], places: Sequence[int]) -> tuple[Piece, ...]:
        found, before = [], 0
        for piece, place in zip(pieces, places, strict=True):
            found.append(Piece(before, place, len(piece)))
            before += len(piece) + len(self._placeholder)
        return tuple(found)


class _Recorded(Exception):  # it says that the text is there
    """The text has come to the tokenizer."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.text = text


class _Recorder:
    """A tokenizer that takes the text that it is called with."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        raise _Recorded(text)


class _Remembered:
    """An image processor that remembers what it made of blank images of some sizes."""

    def __init__(self, image_processor: Any) -> None:
        self._image_processor = image_processor
        self._made: dict[Any, tuple[Any, int]] = {}
        self._bytes = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_image_processor":
            raise AttributeError(name)
        return getattr(self._image_processor, name)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        key = _sizes(images)
        if key not in self._made:
            made = _without_pixels(self._image_processor(_with_pixels(images), *args, **kwargs))
            taken = _bytes(made)
            while self._made and self._bytes + taken > _KEPT_BYTES:
                self._bytes -= self._made.pop(next(iter(self._made)))[1]
            self._made[key] = made, taken
            self._bytes += taken
        return copy.copy(self._made[key][0])


def _listened(replace: Callable[..., Any], said: list[Any]) -> Callable[..., Any]:
    """The same function, whose account of the first text's replacements is put into `said`."""

    @functools.wraps(replace)
    def listened(*args: Any, **kwargs: Any) -> Any:
        answer = replace(*args, **kwargs)
        said.append(answer[1][0] if answer[1] else [])
        return answer

    return listened


def _found(piece: str, text: str, first: int, last: int) -> int:
    """Where these words stand between two images."""
    at = text.find(piece, first, last)
    if at < 0:
        raise ValueError(f"it changes the words {piece[:40]!r}")
    return at


@functools.cache
def _blank_type() -> Any:
    from PIL import Image

    class Blank(Image.Image):
        """An image without pixels, which has a size."""

        def __init__(self, size: Size) -> None:
            super().__init__()
            self.given = size

        mode = property(lambda self: "RGB")
        size = property(lambda self: self.given)
        width = property(lambda self: self.given[0])
        height = property(lambda self: self.given[1])

    return Blank


@functools.lru_cache(4096)
def _blank(size: Size) -> Any:
    return _blank_type()(size)


def _sizes(images: Any) -> Any:
    return tuple(map(_sizes, images)) if isinstance(images, (list, tuple)) else images.size


def _with_pixels(images: Any) -> Any:
    from PIL import Image

    if isinstance(images, (list, tuple)):
        return [_with_pixels(one) for one in images]
    return Image.new("RGB", images.size) if isinstance(images, _blank_type()) else images


def _without_pixels(made: Any) -> Any:
    """What an image processor returned, with arrays of many floats that take no room, as they repeat one."""
    thin = copy.copy(made)
    for name in list(made):
        thin[name] = _thin(made[name])
    return thin


def _thin(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_thin(one) for one in value]
    if isinstance(value, np.ndarray):
        large = value.size > _LARGE and np.issubdtype(value.dtype, np.floating)
        return np.broadcast_to(np.zeros((), value.dtype), value.shape) if large else value
    if hasattr(value, "is_floating_point") and value.is_floating_point() and value.numel() > _LARGE:
        return value.new_zeros(()).expand(value.shape)
    return value


def _bytes(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return 64 + sum(map(_bytes, value))
    if isinstance(value, np.ndarray):
        return 128 + (value.nbytes if value.flags.owndata else 0)
    if hasattr(value, "untyped_storage"):
        return 256 + int(value.untyped_storage().nbytes())
    if hasattr(value, "keys"):
        return 512 + sum(_bytes(value[name]) for name in value)
    return 64
