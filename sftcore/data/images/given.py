"""What rows call an image, in all the ways in which people write one, as a reference to its bytes or its file.

A row keeps paths and encoded bytes, never decoded pixels: what comes as pixels is encoded without loss.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from sftcore.core.errors import RowError
from sftcore.data.images.fetch import fetch, place_of, shown
from sftcore.data.images.reference import ORIENTATION, name_of, open_image, size_of
from sftcore.data.images.sizes import KEYS, asked_of
from sftcore.rows.images import Twice
from sftcore.util.shown import kind_of

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_KEYS = ("bytes", "path", "image", "url", "image_url", "base64", "data", "source")
"""The keys of a mapping that hold the image."""
_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""How the address of something that is not on this machine begins."""
_LOSSLESS = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Modes that a PNG keeps as they are."""
_SHORTEST = 64
"""Shorter texts are the paths of files; an image in base64 is longer."""
_GIVE = "Give a PIL image, encoded bytes, the path of a local file, or an array of uint8 (height, width, 3)."


def source_of(value: Any, folder: str = "", *, remote: bool = False) -> dict[str, Any]:
    """A reference to what a row calls an image.

    Args:
        value: a PIL image; encoded bytes; a path, a file or data URL, or base64; pixels as an array of uint8 (height,
            width, colours), (height, width) or (colours, height, width); or a mapping with one of them as `bytes`,
            `path`, `image`, `url`, `image_url`, `base64`, `data` or `source`, which may ask for a size (see
            sftcore.data.images.sizes; what is asked for within goes first).
        folder: the folder that relative paths start from.
        remote: whether an image at a web address is fetched into the cache.

    Raises:
        RowError: it is none of these, is empty, or does not name a file on this machine.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _of_bytes(bytes(value))
    if isinstance(value, Twice):
        return _compared(value, folder, remote)
    if isinstance(value, Mapping):
        found, asked = _of_mapping(value, folder, remote), asked_of(value)
        return {**found, **asked} if asked and found.keys().isdisjoint(KEYS) else found
    if isinstance(value, (str, Path)):
        return _of_text(str(value), folder, remote)
    if hasattr(value, "save") and hasattr(value, "getbands"):
        return _of_bytes(_encoded(value))
    if value is None:
        raise RowError("an image is null.", fix="Fill it in, or drop the row.")
    if isinstance(value, (list, tuple)) or hasattr(value, "__array__"):
        return _of_bytes(_of_pixels(value))
    raise RowError(f"a value of type {type(value).__name__} cannot be read as an image.", fix=_GIVE)


def _of_mapping(value: Mapping[str, Any], folder: str, remote: bool) -> dict[str, Any]:
    given = {key: value[key] for key in _KEYS if value.get(key) is not None}
    if not given:
        raise RowError("an image is a mapping without bytes or path.", fix="Fill it in, or drop the row.")
    if not isinstance(given.get("bytes", ""), (str, list)) and not len(given["bytes"]) and len(given) > 1:
        del given["bytes"]
    key, found = next(iter(given.items()))
    if key in ("base64", "bytes", "data") and isinstance(found, str) and not found.startswith("data:"):
        return _of_bytes(_of_base64(found))
    return source_of(found, folder, remote=remote)


def _of_bytes(data: bytes) -> dict[str, Any]:
    if not data:
        raise RowError("an image has no bytes.", fix="Fill it in, or drop the row.")
    return {"bytes": data, "path": None}


# --- Texts ----------------------------------------------------------------------------------------------------------
def _of_text(text: str, folder: str, remote: bool) -> dict[str, Any]:
    if not text.strip():
        raise RowError("an image is an empty text.", fix="Fill it in, or drop the row.")
    if text[:5].lower() == "data:":
        return _of_bytes(_of_data_url(text))
    if _ADDRESS.match(text):
        return _of_address(text, remote)
    try:
        name = unquote(urlsplit(text).path) if text[:6].lower() == "file:/" else text
        path = Path(name).expanduser()
        path = path if path.is_absolute() else Path(folder).expanduser() / path
        if path.is_file():
            return {"bytes": None, "path": str(path.resolve())}
        is_folder = path.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long for a name, a null byte, or an unknown user's home
        path, is_folder = Path(text), False
    if len(text) >= _SHORTEST and (found := _in_base64(text)) is not None:
        return found
    if is_folder:
        raise RowError(f"the image {path} is a folder.", fix="Give the path of one file.")
    raise RowError(
        f"the image {_cut(str(path))} does not exist.",
        fix="Set image_folder, the folder that relative paths start from, or correct the path.",
    )


def _of_address(text: str, remote: bool) -> dict[str, Any]:
    """The file in the cache with the image of an address."""
    on_the_web = text[:8].lower().startswith(("http://", "https://"))
    if not remote or not on_the_web:
        also = ", or set allow_remote_images: true, and it is fetched once" if on_the_web else ""
        raise RowError(
            f"the image {shown(text)} is not on this machine, and {'the run does not' if on_the_web else 'no run can'} "
            "fetch it.",
            fix=f"Download it, and give the path of the file{also}.",
        )
    is_new = not place_of(text).is_file()
    file = fetch(text)
    found = {"bytes": None, "path": str(file)}
    try:
        if is_new:
            size_of(found, sys.maxsize)
    except RowError:
        file.unlink(missing_ok=True)
        raise RowError(
            f"what the address {shown(text)} holds is not an image.", fix="Correct the address, or drop the row."
        ) from None
    return found


def _cut(text: str) -> str:
    """The text, without the middle of a very long one, such as base64 that is damaged."""
    return text if len(text) <= 300 else f"{text[:120]}…{text[-40:]}"


def _of_data_url(text: str) -> bytes:
    head, comma, data = text.partition(",")
    try:
        if not comma:
            raise ValueError("it has no comma before its data")
        if head.lower().rpartition(";")[2] == "base64":
            return _of_base64(unquote(data))
        if "%" not in data:
            raise ValueError("it is not in base64")
        return unquote_to_bytes(data)
    except ValueError as error:
        raise RowError(f"an image is a data URL that cannot be read: {error}.", fix="Give the bytes.") from error


def _in_base64(text: str) -> dict[str, Any] | None:
    """The image, if the text is one in base64; the path of a file may be spelled with the same characters."""
    try:
        found = _of_bytes(_of_base64(text))
        size_of(found, sys.maxsize)
    except RowError:
        return None
    return found


def _of_base64(text: str) -> bytes:
    """The bytes; line breaks, the alphabet for addresses and missing padding are understood."""
    plain = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        raise RowError(f"an image's base64 cannot be read: {error}.", fix="Give the bytes.") from error


# --- Pixels ---------------------------------------------------------------------------------------------------------
def _encoded(image: Image) -> bytes:
    """The image as a PNG, upright by its EXIF orientation, which a PNG would not keep."""
    from PIL import ImageOps

    if not image.width or not image.height:
        raise RowError(f"an image has no pixels ({image.width} x {image.height}).", fix="Drop the row.")
    buffer = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image
        lossless = upright if upright.mode in _LOSSLESS else upright.convert("RGB")
        lossless.save(buffer, "PNG", compress_level=1)
    except (OSError, ValueError, SyntaxError) as error:  # a file that Pillow reads when its pixels are asked for
        named = getattr(image, "filename", "") or f"of {image.width} x {image.height} pixels"
        raise RowError(f"the image {named} is broken: {error}.", fix="Repair it, or drop the row.") from error
    return buffer.getvalue()


def _of_pixels(value: Any) -> bytes:
    """An array of pixels as a PNG; lists of numbers are what Arrow makes of an array."""
    import numpy as np
    from PIL import Image

    try:
        found = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of several lengths; a tensor on a device
        raise RowError(f"an image is {kind_of(value)} that is not an array of pixels: {error}.", fix=_GIVE) from error
    if found.ndim == 1 and found.dtype.kind in "iu" and _are_bytes(found):
        return found.astype(np.uint8).tobytes()  # the bytes of a file, as JSON writes them
    said = f"an array of {found.dtype} and shape {tuple(found.shape)}"
    if found.dtype.kind == "b":
        found = found.astype(np.uint8) * 255
    if found.dtype.kind not in "iu" or not _are_bytes(found):
        raise RowError(f"an image is {said}, not pixels from 0 to 255.", fix=_GIVE)
    if found.ndim == 3 and found.shape[2] not in (1, 3, 4) and found.shape[0] in (1, 3, 4):
        found = np.moveaxis(found, 0, 2)
    if found.ndim == 3 and found.shape[2] == 1:
        found = found[:, :, 0]
    if found.ndim != 2 and (found.ndim != 3 or found.shape[2] not in (3, 4)):
        raise RowError(f"an image is {said}, which has no rows of colours.", fix=_GIVE)
    if not found.size:
        raise RowError(f"an image has no pixels ({found.shape[1]} x {found.shape[0]}).", fix="Drop the row.")
    return _encoded(Image.fromarray(np.ascontiguousarray(found, dtype=np.uint8)))


def _are_bytes(found: np.ndarray) -> bool:
    return not found.size or (int(found.min()) >= 0 and int(found.max()) <= 255)


# --- Twice ----------------------------------------------------------------------------------------------------------
def _compared(given: Twice, folder: str, remote: bool) -> dict[str, Any]:
    """The image that stands in two places of a row.

    Raises:
        RowError: there are two.
    """
    column = source_of(given.column, folder, remote=remote)
    if _is_named_as(given.part, given.column):
        return {**column, **(asked_of(given.part) if isinstance(given.part, Mapping) else {})}
    part = source_of(given.part, folder, remote=remote)
    if not _are_equal(part, column):
        raise RowError(
            f"{given.places} are not the same: {name_of(part)}, and {name_of(column)}.",
            fix="Keep one of them, or correct the other.",
        )
    return part


def _is_named_as(part: Any, column: Any) -> bool:
    """Whether a part names the file whose bytes are in the column, as `datasets` embeds a file."""
    if isinstance(part, Mapping):
        part = part.get("image", part.get("path"))
    held = isinstance(column, Mapping) and column.get("bytes") and column.get("path")
    return bool(held) and isinstance(part, str) and Path(part).name == Path(column["path"]).name


def _are_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if one["path"] and one["path"] == other["path"]:
        return True
    data: Sequence[bytes] = [each["bytes"] or Path(each["path"]).read_bytes() for each in (one, other)]
    if data[0] == data[1]:
        return True
    pictures = [open_image({"bytes": each, "path": None}) for each in data]
    return pictures[0].size == pictures[1].size and pictures[0].tobytes() == pictures[1].tobytes()
