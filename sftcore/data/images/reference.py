"""References to the images of rows: their sizes are read from the file headers, and they are decoded for a batch.

A reference is a mapping with `bytes` (an encoded image) or `path` (a local file), as `datasets` stores an Image.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from sftcore.core.errors import ModelError, RowError

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = Mapping[str, Any]
"""{"bytes": …, "path": …}; one of the two is None."""

MAX_PIXELS = 89_478_485
"""The most pixels that an image may have by default: Pillow's own limit, 256 MiB in RGB."""

ORIENTATION = 0x0112
"""The EXIF tag for the orientation of the camera."""
SIDEWAYS = (5, 6, 7, 8)
"""Orientations in which width and height are swapped."""

_OPENING = threading.Lock()


def size_of(source: ImageSource, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height in pixels, from the header of the file; nothing is decoded.

    Raises:
        RowError: it cannot be read, has no pixels, or has more than `max_pixels`.
    """
    with _opened(source) as image:
        width, height = image.size
        if _has_orientation(image) and image.getexif().get(ORIENTATION) in SIDEWAYS:
            width, height = height, width
    if not width or not height:
        raise RowError(f"{name_of(source)} has no pixels ({width} x {height}).", fix="Drop the row.")
    if width * height > max_pixels:
        raise RowError(
            f"{name_of(source)} has {width:,} x {height:,} pixels, more than {max_pixels:,}: decoding it would take "
            f"{3 * width * height / 2**20:,.0f} MiB.",
            fix="Shrink it, drop the row, or raise max_image_pixels.",
        )
    return width, height


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image:
    """The image, decoded, upright by its EXIF orientation, in RGB: what transformers' own `load_image` gives.

    Raises:
        RowError: it cannot be read or decoded, or is too large.
    """
    from PIL import ImageOps

    size_of(source, max_pixels)
    with _opened(source) as image:
        try:
            upright = ImageOps.exif_transpose(image) if _has_orientation(image) else image
            return upright.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise RowError(f"{name_of(source)} is broken: {error}.", fix="Repair the file, or drop the row.") from error


def name_of(source: ImageSource) -> str:
    """The name of the image in errors."""
    if source.get("path"):
        return f"the image {source['path']}"
    return f"the image of {len(source['bytes'] or b''):,} bytes"


def holds_only_images(feature: Any) -> bool:
    """Whether a column needs decoding only for images, which stay references if they are not decoded."""
    from datasets import Image

    if isinstance(feature, Mapping):
        return all(map(holds_only_images, feature.values()))
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if inner is not None:
        return holds_only_images(inner)
    return isinstance(feature, Image) or not hasattr(feature, "decode_example")


def _has_orientation(image: Image) -> bool:
    """Whether the header has an orientation; Pillow would decode a whole PNG to look for one at its end."""
    return image.format != "PNG" or "exif" in image.info


@contextlib.contextmanager
def _opened(source: ImageSource) -> Iterator[Image]:
    try:
        import PIL.Image
    except ImportError as error:
        raise ModelError("images need Pillow.", fix='Install it: pip install "sftcore[vlm]"') from error
    file = source["path"] if source.get("bytes") is None else io.BytesIO(source["bytes"])
    try:
        with _OPENING:
            # only the header is read here, and the run's own limit is applied to the size in it
            limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
            try:
                image = PIL.Image.open(file)
            finally:
                PIL.Image.MAX_IMAGE_PIXELS = limit
    except (OSError, ValueError, SyntaxError, TypeError) as error:
        raise RowError(
            f"{name_of(source)} cannot be read ({type(error).__name__}).", fix="Repair the file, or drop the row."
        ) from error
    with image:
        yield image
