"""Video files: what they hold, found without decoding them, and single frames of them. Read by PyAV (FFmpeg)."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from attrs import evolve, frozen

from sftcore.core.errors import ModelError, RowError
from sftcore.data.images.reference import MAX_PIXELS

if TYPE_CHECKING:
    import numpy as np

MAX_FRAMES = 2**20
"""The most frames that a file may have: 9 hours at 30 a second."""
_ALONE = {"protocol_whitelist": "none"}
"""A playlist may name other files and addresses, which must not be opened."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""How the address of something that is not on this machine begins."""
SOUND = ("h264", "hevc", "mpeg1video", "mpeg2video")
"""Codecs of which every packet is a frame that can be decoded if it is whole; of others only decoding tells."""
FAULTS = (OSError, ValueError, RuntimeError)
"""FFmpeg's errors."""
MISSING = "videos need PyAV"
INSTALL = 'Install it: pip install "sftcore[video]"'


@frozen
class Clip:
    """What is known of a clip: its frames, how many of them a second has (None if it does not say), and their size.

    `is_sound` says that its structure leaves no doubt that its frames can be decoded.
    """

    total: int
    rate: float | None
    width: int
    height: int
    is_file: bool = False
    is_sound: bool = True

    @property
    def duration(self) -> float | None:
        """Seconds."""
        return self.total / self.rate if self.rate else None


def file_of(value: Any, folder: str) -> dict[str, Any]:
    """The path or bytes of a file, as a prepared row keeps them.

    Raises:
        RowError: it has no bytes, or does not name a file on this machine.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        if not len(value):
            raise RowError("a video has no bytes.", fix="Fill it in, or drop the row.")
        return {"bytes": bytes(value), "path": None}
    text = str(value)
    if text[:5].lower() == "data:":
        raise RowError("a video is a data URL, which is not read.", fix="Give its bytes, or the path of a file.")
    if text[:6].lower() == "file:/":
        text = unquote(urlsplit(text).path)
    elif _ADDRESS.match(text):
        raise RowError(
            f"the video {text[:200]} is not on this machine, and a run does not download videos.",
            fix="Download it, and give the path of the file.",
        )
    try:
        path = Path(text).expanduser()
        path = path if path.is_absolute() else Path(folder).expanduser() / path
        is_there = path.is_file()
    except (OSError, RuntimeError):  # too long for a name, as base64 is, or an unknown user's home
        path, is_there = Path(text), False
    if not is_there:
        name = str(path)
        raise RowError(
            f"the video {name if len(name) <= 300 else f'{name[:120]}…{name[-40:]}'} does not exist.",
            fix="Set image_folder, the folder that relative paths start from, or correct the path.",
        )
    return {"bytes": None, "path": str(path.resolve())}


def probed(part: Mapping[str, Any]) -> Clip:
    """What the file holds: its packets are counted, and of its frames those alone are decoded that need no other.

    Raises:
        RowError: it cannot be read, or has no video, no frame, too many frames, or frames that are too large.
        ModelError: PyAV is not installed.
    """
    with _opened(part) as container:
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise RowError(
                f"{_name(part)} has frames of {stream.width:,} x {stream.height:,} pixels, more than {MAX_PIXELS:,}.",
                fix="Shrink it, or drop the row.",
            )
        rate = float(stream.average_rate or stream.base_rate or stream.guessed_rate or 0) or None
        first, total, sound = _looked_through(container, stream)
    if total > MAX_FRAMES:
        raise RowError(f"{_name(part)} has more than {MAX_FRAMES:,} frames.", fix="Cut it, or drop the row.")
    if not total:
        raise RowError(f"{_name(part)} has no frames.", fix="Repair the file, or drop the row.")
    if first is None:
        with _opened(part) as container:
            first = next(_frames(container), None)
    if first is None:
        raise RowError(f"{_name(part)} is broken: no frame can be decoded.", fix="Repair the file, or drop the row.")
    return Clip(total, rate, first.width, first.height, is_file=True, is_sound=sound)


def _looked_through(container: Any, stream: Any) -> tuple[Any, int, bool]:
    """The first frame that needs no other, the number of packets, and whether nothing in them leaves a doubt.

    The decoders of SOUND codecs read the structure of every packet, also where they decode only what needs no other.
    """
    context = stream.codec_context
    sound = context.name in SOUND
    context.skip_frame = "NONKEY"
    first, total, decodes = None, 0, True
    for packet in itertools.islice(container.demux(stream), MAX_FRAMES + 1):
        total += bool(packet.size)
        sound = sound and not packet.is_corrupt
        if not decodes:
            continue
        try:
            found = packet.decode()
        except FAULTS:
            decodes = sound = False
            continue
        first = first or next(iter(found), None)
        decodes = context.name in SOUND or first is None
    return first, total, sound and total >= stream.frames


def counted(part: Mapping[str, Any], clip: Clip) -> Clip:
    """The clip with as many frames as decoding gives, as packets may hold none (VP8, MPEG-4); it is sound then.

    Where decoding stops at damage, it is the clip that was given.
    """
    total = 0
    try:
        with _opened(part) as container:
            for frame in container.decode(video=0):
                if (frame.width, frame.height) != (clip.width, clip.height):
                    return clip
                total += 1
    except (RowError, *FAULTS):
        return clip
    return evolve(clip, total=min(total, clip.total), is_sound=True) if total else clip


def hold_decodable(reference: Mapping[str, Any], numbers: Sequence[int], size: tuple[int, int]) -> None:
    """Hold that the frames of these numbers can be decoded.

    Raises:
        RowError: as `decoded` does.
    """
    for _ in _chosen(reference["parts"][0], numbers, size):
        pass


def decoded(reference: Mapping[str, Any], numbers: Sequence[int], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """The frames of these numbers, which are in order: (frames, height, width, 3) uint8, RGB.

    Raises:
        RowError: one of them cannot be decoded, or has another size than the first of the file.
    """
    import numpy as np

    return np.stack([one.to_ndarray(format="rgb24") for one in _chosen(reference["parts"][0], numbers, size)])


def _chosen(part: Mapping[str, Any], numbers: Sequence[int], size: tuple[int, int]) -> Iterator[Any]:
    left = iter(numbers)
    wanted, count = next(left, None), 0
    with _opened(part) as container:
        for number, frame in enumerate(_frames(container)):
            while number == wanted:
                if (frame.width, frame.height) != size:
                    raise RowError(
                        f"{_name(part)} changes its size at frame {number}, from {size[0]} x {size[1]} to "
                        f"{frame.width} x {frame.height} pixels.",
                        fix="Encode it again, or drop the row.",
                    )
                yield frame
                count += 1
                wanted = next(left, None)
            if wanted is None:
                break
    if count < len(numbers):
        raise RowError(
            f"{_name(part)} is broken: frame {numbers[count]} cannot be decoded.",
            fix="Repair the file, or drop the row.",
        )


def _frames(container: Any) -> Iterator[Any]:
    try:
        yield from container.decode(video=0)
    except FAULTS:  # the caller says which frame is missing
        return


@contextlib.contextmanager
def _opened(part: Mapping[str, Any]) -> Iterator[Any]:
    """The file as PyAV opens it, with at least one video in it."""
    try:
        import av
    except ImportError as error:
        raise ModelError(f"{MISSING}.", fix=INSTALL) from error
    file = io.BytesIO(part["bytes"]) if part.get("bytes") is not None else part["path"]
    try:
        with contextlib.ExitStack() as stack:
            # by a handle, so that no name is taken for an address or a pattern
            handle = stack.enter_context(open(file, "rb")) if isinstance(file, str) else file
            container = stack.enter_context(av.open(handle, options=_ALONE))
            if not container.streams.video:
                raise RowError(f"{_name(part)} has no video in it.", fix="Drop the row, or give another file.")
            if container.streams.video[0].codec_context is None:
                what = f"{_name(part)} cannot be decoded: PyAV does not know its codec, or the file is cut off."
                raise RowError(what, fix="Repair the file, encode it anew (H.264), or drop the row.")
            yield container
    except RowError:
        raise
    except (OSError, ValueError, RuntimeError, EOFError) as error:  # FFmpeg's errors are of these types
        raise RowError(
            f"{_name(part)} cannot be read ({type(error).__name__}).", fix="Repair the file, or drop the row."
        ) from error


def _name(part: Mapping[str, Any]) -> str:
    return f"the video {part['path']}" if part.get("path") else f"the video of {len(part['bytes']):,} bytes"
