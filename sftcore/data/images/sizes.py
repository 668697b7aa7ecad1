"""The size that an image is given before the processor reads it, where its row or the format asks for one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sftcore.core.errors import RowError
from sftcore.util.shown import shortened

KEYS = ("min_pixels", "max_pixels", "longest", "width", "height")
"""What a reference to an image says of its size, in pixels; None or absent where nothing is asked for."""
_ASKED = frozenset(("min_pixels", "max_pixels", "resized_width", "resized_height", "image_size"))
"""What a row's mapping of an image says of its size."""
_MOST = 2**62
"""The largest number that prepared rows can keep, with room for what others add to it."""


def asked_of(value: Mapping[str, Any]) -> dict[str, int]:
    """The size that a row's mapping of an image asks for, in the KEYS.

    It reads `min_pixels` and `max_pixels`, `resized_width` with `resized_height` as Qwen's guides write them, and
    `image_size`: a number for the longer side at most, or [width, height].

    Raises:
        RowError: one of them is not a number of pixels, or no size fits all of them.
    """
    if _ASKED.isdisjoint(value):  # as most are, and there is one for each image
        return {}
    given = {key: value[key] for key in ("min_pixels", "max_pixels") if value.get(key) is not None}
    sides = [value.get(key) for key in ("resized_width", "resized_height")]
    size = value.get("image_size")
    if size is not None and not isinstance(size, (list, tuple)):
        given["longest"] = size
    elif size is not None or sides != [None, None]:
        both = tuple(sides if size is None else size)
        if len(both) != 2 or None in both:
            raise RowError(f"an image is to have the size {shortened(both)}.", fix="Give [width, height].")
        given["width"], given["height"] = both
    for name, number in given.items():
        whole = isinstance(number, int) or (isinstance(number, float) and number.is_integer())
        if isinstance(number, bool) or not whole or not 1 <= number <= _MOST:
            raise RowError(f"an image has {name}: {shortened(number)}.", fix="Give a whole number of pixels.")
    found = {name: int(number) for name, number in given.items()}
    if found.get("min_pixels", 0) > found.get("max_pixels", math.inf):
        fix = "Give min_pixels that are fewer than max_pixels."
        raise RowError(
            f"an image has min_pixels {found['min_pixels']:,} and max_pixels {found['max_pixels']:,}.", fix=fix
        )
    return found


def fitted(width: int, height: int, source: Mapping[str, Any]) -> tuple[int, int]:
    """The width and height that an image is given. Its shape is kept, but for an exact `width` and `height`.

    >>> fitted(4000, 3000, {"max_pixels": 1_000_000}), fitted(4000, 3000, {"longest": 448}), fitted(4, 3, {})
    ((1154, 866), (448, 336), (4, 3))
    """
    if source.keys().isdisjoint(KEYS):
        return width, height
    if source.get("width") and source.get("height"):
        return int(source["width"]), int(source["height"])
    longest, most, least = (source.get(key) for key in ("longest", "max_pixels", "min_pixels"))
    if longest and max(width, height) > longest:
        scale = longest / max(width, height)
        width, height = max(round(width * scale), 1), max(round(height * scale), 1)
    if most and width * height > most:
        scale = math.sqrt(most / (width * height))
        width, height = max(int(width * scale), 1), max(int(height * scale), 1)
        width, height = min(width, most), min(height, most)
    elif least and width * height < least:
        scale = math.sqrt(least / (width * height))
        width, height = math.ceil(width * scale), math.ceil(height * scale)
    return width, height
