"""References to the images of rows: their sizes are read from the file headers, and they are decoded for a batch.

A reference is a mapping with `bytes` (an encoded image) or `path` (a local file), as `datasets` stores an Image.
"""

from __future__ import annotations

import contextlib
import copy
import io
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from sftcore.core.errors import ModelError, RowError
from sftcore.data.images.sizes import fitted

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

ImageSource: TypeAlias = Mapping[str, Any]
"""{"bytes": …, "path": …}; one of the two is None. It may ask for a size (see sftcore.data.images.sizes)."""

MAX_PIXELS = 89_478_485
"""The most pixels that an image may have by default: Pillow's own limit, 256 MiB in RGB."""

ORIENTATION = 0x0112
"""The EXIF tag for the orientation of the camera."""
SIDEWAYS = (5, 6, 7, 8)
"""Orientations in which width and height are swapped."""
_TURNED_BY = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Where the head of a PNG may have an orientation."""
_TAIL = 2**14
"""How many bytes at the end of a PNG are looked at for an orientation behind the pixels."""
_KINDS = (
    (b"", "it is an empty file"),
    (b"<svg", "it is a drawing in SVG, which has no pixels"),
    (b"<?xml", "it is XML, such as a drawing in SVG, which has no pixels"),
    (b"<!doctype html", "it is a web page"),
    (b"<html", "it is a web page"),
    (b"%pdf", "it is a PDF document"),
    (b"%!ps", "it is a PostScript document"),
    (b"version https://git-lfs", "it is a pointer of Git LFS, whose file was not fetched"),
)
"""What files that are not images begin with."""

_OPENING = threading.Lock()


def size_of(source: ImageSource, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height in pixels that `open_image` gives, from the header of the file; nothing is decoded.

    Raises:
        RowError: it cannot be read, has no pixels, or has more than `max_pixels`.
    """
    with _opened(source) as image:
        width, height = image.size
        sideways = _has_orientation(image, source) and _orientation_of(image, source) in SIDEWAYS
        if sideways and not _is_turned(image):
            width, height = height, width
    if not width or not height:
        raise RowError(f"{name_of(source)} has no pixels ({width} x {height}).", fix="Drop the row.")
    if width * height > max_pixels:
        raise RowError(
            f"{name_of(source)} has {width:,} x {height:,} pixels, more than {max_pixels:,}: decoding it would take "
            f"{3 * width * height / 2**20:,.0f} MiB.",
            fix="Shrink it, drop the row, or raise max_image_pixels.",
        )
    given = fitted(width, height, source)
    if given[0] * given[1] > max_pixels:
        raise RowError(
            f"{name_of(source)} would be given {given[0]:,} x {given[1]:,} pixels, more than {max_pixels:,}.",
            fix="Ask for a smaller size, or raise max_image_pixels.",
        )
    return given


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image:
    """The image, decoded, upright by its EXIF orientation, in RGB: what transformers' own `load_image` gives.

    Where it is to have another size, it is resized with Pillow's bicubic filter.

    Of an animation or a file with several pages it is the first picture.

    Raises:
        RowError: it cannot be read or decoded, or is too large.
    """
    from PIL import Image, ImageOps

    size = size_of(source, max_pixels)
    with _opened(source) as image:
        try:
            upright = ImageOps.exif_transpose(image) if _has_orientation(image, source) else image
            found = upright.convert("RGB")
            return found if found.size == size else found.resize(size, Image.Resampling.BICUBIC)
        except Exception as error:  # the decoders of damaged files raise a dozen types
            said = f"{error}" or type(error).__name__
            raise RowError(f"{name_of(source)} is broken: {said}.", fix="Repair the file, or drop the row.") from error


def frames_of(source: ImageSource) -> int:
    """How many pictures the file holds, 2 for any more than one. A photograph beside which a camera keeps others is 1.

    Raises:
        RowError: it cannot be read.
    """
    with _opened(source) as image:
        if image.format in ("JPEG", "MPO"):
            return 1
        try:
            image.seek(1)
        except Exception:  # EOFError where there is no other; what is broken behind the first is not read
            return 1
        return 2


def name_of(source: ImageSource) -> str:
    """The name of the image in errors."""
    if source.get("path"):
        return f"the image {source['path']}"
    return f"the image of {len(source['bytes'] or b''):,} bytes"


def holds_only_images(feature: Any) -> bool:
    """Whether a column needs decoding only for images and videos, which stay references if they are not decoded."""
    from datasets import Image, Video

    if isinstance(feature, Mapping):
        return all(map(holds_only_images, feature.values()))
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if inner is not None:
        return holds_only_images(inner)
    return isinstance(feature, (Image, Video)) or not hasattr(feature, "decode_example")


def _has_orientation(image: Image, source: ImageSource) -> bool:
    """Whether the file may have one; Pillow would decode a whole PNG to look for one at its end."""
    if image.format != "PNG" or not image.info.keys().isdisjoint(_TURNED_BY):
        return True
    if (data := source.get("bytes")) is not None:
        return bool(data.find(b"eXIf", -_TAIL) >= 0)
    opened: Any = image
    file = opened.fp
    here = file.tell()
    file.seek(-min(_TAIL, file.seek(0, io.SEEK_END)), io.SEEK_END)
    found = b"eXIf" in file.read()
    file.seek(here)
    return found


def _is_turned(image: Any) -> bool:
    """Whether Pillow gives the size that the image has when it is upright, as newer versions do for TIFF."""
    return bool(image.format == "TIFF" and image.size != (image.tag_v2.get(256), image.tag_v2.get(257)))


def _orientation_of(image: Image, source: ImageSource) -> Any:
    try:
        return image.getexif().get(ORIENTATION)
    except Exception as error:  # the readers of damaged files raise a dozen types
        raise RowError(f"{name_of(source)} is broken: {error}.", fix="Repair the file, or drop the row.") from error


def with_references(dataset: Dataset) -> Dataset:
    """The set, whose images and videos are not decoded when its rows are read, wherever they stand in its columns."""
    from datasets import Features

    kinds = copy.deepcopy(dict(dataset.features))
    _leave_encoded(kinds)
    found = copy.deepcopy(dataset)
    found.info.features = Features(kinds)
    return found


def _leave_encoded(kind: Any) -> None:
    from datasets import Image, Video

    if isinstance(kind, (Image, Video)):
        kind.decode = False
    elif isinstance(kind, Mapping):
        for inner in kind.values():
            _leave_encoded(inner)
    else:
        inner = kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)
        if inner is not None:
            _leave_encoded(inner)


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
        if image.format == "EPS":  # Pillow would have Ghostscript run it
            raise ValueError("a program in PostScript")
    except Exception as error:  # the readers of damaged files raise a dozen types
        raise RowError(
            f"{name_of(source)} cannot be read ({_said(error, source)}).", fix="Repair the file, or drop the row."
        ) from error
    with image:
        yield image


def _said(error: Exception, source: ImageSource) -> str:
    """Why an image cannot be read: by what it is instead, or by the error."""
    if isinstance(error, FileNotFoundError):
        return "it is not there any more"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        head = source["bytes"] if source.get("bytes") is not None else _head_of(source["path"])
    except OSError as unreadable:
        return unreadable.strerror or type(unreadable).__name__
    start = head[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kinds = (what for begin, what in _KINDS if (start.startswith(begin) if begin else not head))
    return next(kinds, f"{type(error).__name__}: it is not in a format that Pillow reads, or is damaged at its head")


def _head_of(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)
