"""Whether the data of an image is whole, which preparation wants to know before a run does, in the middle.

Decoding every image twice would cost more than the rest of preparation. So the structure of PNG and JPEG is looked at,
with the checksums of PNG, and an image is decoded where that leaves a doubt, or where its format has no such structure.
What is refused is what cannot be decoded, and nothing else.
"""

from __future__ import annotations

import functools
import os
import zlib
from pathlib import Path

import numpy as np

from sftcore.core.errors import RowError
from sftcore.data.images.reference import MAX_PIXELS, ImageSource, frames_of, open_image

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_DENSEST = 1032
"""How many bytes one byte of a deflate stream can become."""
_BITS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples of a pixel by the colour type of a PNG."""
_MOST_BYTES = 2**28
"""Larger files are decoded, for which they are not read whole."""
_FIRST = 4096
_FEWEST = 64
"""Fewer bytes of pixels are inflated: they are few, and need not be all."""
_PLAIN = {*((0, depth) for depth in (1, 2, 4)), *((colours, depth) for colours in (0, 2, 4, 6) for depth in (8, 16))}
"""Colour types and bits of a sample of a PNG whose pixels need nothing but its data."""
_FILTERS = 5
"""Each row of pixels in a PNG begins with a number below this."""
_IN_SCANS = np.zeros(256, bool)
"""What may follow 0xff in the scans of a JPEG: a stuffed zero, a restart, and another 0xff as filling."""
_IN_SCANS[[0x00, *range(0xD0, 0xD8), 0xFF]] = True
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
"""Markers of the segment with width and height."""
_SCAN, _END = 0xDA, 0xD9
_UNREAD = (*range(0xE0, 0xEE), 0xEF, 0xFE)
"""Markers of segments for programs and of comments; 0xee says which colours four channels are."""
MOST_SCANS = 100
"""Those of a file of some kilobytes can take hours to decode; programs write about ten."""
_ALONE = (0x01, *range(0xD0, 0xD9))
"""Markers without a length."""


def frames_in(source: ImageSource, max_pixels: int = MAX_PIXELS) -> int:
    """How many pictures the image holds, 2 for any more than one; its first is what is trained on.

    Raises:
        RowError: the image is damaged or cut off.
    """
    data = source["bytes"] if source.get("bytes") is not None else _read(source["path"])
    if data is not None:
        if data[:8] == _PNG and (found := _png_frames(data)):
            return found
        if data[:3] == _JPEG and _is_whole_jpeg(data):
            return 1
    open_image(source, max_pixels)
    return frames_of(source)


def _read(path: str) -> bytes | None:
    """The bytes of a file, or None where they are too many for what an image can be, or cannot be read."""
    try:
        return Path(path).read_bytes() if os.path.getsize(path) <= _MOST_BYTES else None
    except OSError:  # gone since its header was read, which opening it will say
        return None


def _png_frames(data: bytes) -> int:
    """How many pictures a PNG has, of which all checksums hold and whose pixels can be there; 0 if one does not."""
    view, at, frames, pixels = memoryview(data), 8, 1, bytearray()
    length_of_pixels, row, raw, plain = 0, 1, 0, False
    while at + 12 <= len(data):
        length, kind = int.from_bytes(view[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(data) or zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return 0
        if kind == b"IHDR":
            width, height, depth, colours = (
                int.from_bytes(view[at + 8 + first : at + 8 + last], "big") for first, last in _HEAD
            )
            row = 1 + (width * depth * _BITS.get(colours, 1) + 7) // 8
            raw = height * row
            # without a palette, which is another chunk, and not interlaced, where rows have several lengths
            plain = length == 13 and (colours, depth) in _PLAIN and not data[at + 20]
        elif kind == b"IDAT":
            length_of_pixels += length
            if len(pixels) < _FIRST:
                pixels += view[at + 8 : end][:_FIRST]
        elif kind == b"tRNS":
            plain = False
        elif kind == b"acTL":
            frames = min(max(int.from_bytes(view[at + 8 : at + 12], "big"), 1), 2)
        elif kind == b"IEND":
            if length_of_pixels < _FEWEST:
                return frames if plain and _inflate_to_rows(pixels, row, raw) else 0
            return frames if raw <= _DENSEST * length_of_pixels and _inflates(pixels) else 0
        at = end + 4
    return 0


_HEAD = ((0, 4), (4, 8), (8, 9), (9, 10))
"""Where width, height, bits of a sample and colour type stand in the head of a PNG."""


def _inflate_to_rows(pixels: bytearray, row: int, raw: int) -> bool:
    """Whether these are all rows of an image."""
    try:
        found = zlib.decompress(pixels)
    except zlib.error:
        return False
    return len(found) == raw and max(found[::row]) < _FILTERS


def _inflates(start: bytearray) -> bool:
    try:
        zlib.decompressobj().decompress(start, 1)
    except zlib.error:
        return False
    return True


def _is_whole_jpeg(data: bytes) -> bool:
    """Whether the segments and scans of a JPEG follow one another to its end, with tables that can be read.

    Raises:
        RowError: there are more scans than any program writes.
    """
    at, marks, scans, head = 2, None, 0, bytearray(data[:2])
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            return False
        kind = data[at + 1]
        if kind == _END:
            return scans > 0 and _is_whole_head(bytes(head))
        if kind == 0xFF or kind in _ALONE:
            at += 1 if kind == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at:end]
        if kind in _FRAMES:
            segment = segment[:5] + b"\0\x08\0\x08" + segment[9:]  # of 8 x 8 pixels
        if kind not in _UNREAD:
            head += segment
        if kind == _SCAN:
            scans += 1
            marks = _marks(data) if marks is None else marks
            following = int(np.searchsorted(marks, end))
            if scans > MOST_SCANS:
                what = f"an image in JPEG has more than {MOST_SCANS} scans: decoding it could take hours."
                raise RowError(what, fix="Save it again, or drop the row.")
            if following == len(marks):
                return False
            head += bytes(16)
            end = int(marks[following])
        at = end
    return False


def _marks(data: bytes) -> np.ndarray:
    """Where a marker is that does not belong into a scan."""
    found = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(found[:-1] == 0xFF)
    return places[~_IN_SCANS[found[places + 1]]]


@functools.lru_cache(maxsize=1024)
def _is_whole_head(head: bytes) -> bool:
    """Whether the tables of a JPEG can be read, which most images of one camera or program have in common."""
    try:
        open_image({"bytes": head + b"\xff\xd9", "path": None})
    except RowError:
        return False
    return True
