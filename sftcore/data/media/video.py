"""Videos as a modality: which frames of a clip a model sees, and these frames as the processor takes them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, frozen

from sftcore.core.errors import RowError
from sftcore.data.images.given import source_of
from sftcore.data.images.reference import open_image, size_of
from sftcore.data.images.whole import frames_in
from sftcore.data.media.clips import Clip, counted, decoded, file_of, hold_decodable, probed
from sftcore.data.media.modality import Modality, Reference, facts_of, name_of, reference
from sftcore.data.media.sampling import chosen_frames, fps_asked_for, whole_number

if TYPE_CHECKING:
    Frames = np.ndarray[Any, np.dtype[np.uint8]]

MAX_PIXELS = 2**28
"""The most pixels of all frames of one video that a model sees together: 768 MiB when they are decoded."""
_SOURCES = ("video", "frames", "video_url", "url", "bytes", "path")
"""The keys under which a part, or a mapping in a column, may hold its video."""
_FPS = ("fps", "sample_fps", "raw_fps")
_COUNTS = ("num_frames", "nframes")


@frozen
class Video(Modality):
    """Videos: files, lists of pictures, and arrays of frames.

    fps: how many frames of each second a model sees, of videos that say how fast they are.
    num_frames: how many frames a model sees; all of a shorter video. Without either, as the processor itself samples.
    """

    fps: float | None = None
    num_frames: int | None = None
    name = "video"
    argument = "videos"

    def read_by(self, processor: Any) -> bool:
        """Whether this processor reads videos: it has a part for them, and a token that stands for one."""
        return super().read_by(processor) and getattr(processor, "video_processor", None) is not None

    def refer(self, value: Any, folder: str, processor: Any) -> Reference:
        """A reference to a video with the frames of it that the model sees, of which those alone are kept.

        Args:
            value: the path, file URL or bytes of a file; a list of pictures; an array (frames, height, width, 3) uint8;
                or a mapping with one of them as `video`, `frames`, `path`, `url` or `bytes`. Beside a file, it may say
                `fps` or `num_frames`, which go before those of the format; beside frames, the `fps` that they have.
            folder: the folder that relative paths start from.
            processor: the model's processor, whose video processor samples.

        Raises:
            RowError: it is none of these, is empty or damaged, or its frames are too large together.
            ModelError: it is a file, and PyAV is not installed.
        """
        value, beside = _apart(value)
        if isinstance(value, (str, bytes, bytearray, memoryview)) or hasattr(value, "__fspath__"):
            own = self._with(beside)
            part = file_of(value, folder)
            clip = probed(part)
            clip = clip if clip.is_sound else counted(part, clip)
            frames = chosen_frames(processor.video_processor, clip, own.fps, own.num_frames)
            made = self._reference([part], clip, frames)
            if not clip.is_sound:
                hold_decodable(made, frames, (clip.width, clip.height))
            return made
        if value is None:
            raise RowError("a video is null.", fix="Fill it in, or drop the row.")
        return self._of_frames(value, folder, processor, rate=fps_asked_for(beside, _FPS), beside=beside)

    def _with(self, beside: Mapping[str, Any]) -> Video:
        """These options, or those that the row has for this file."""
        fps, count = fps_asked_for(beside, _FPS), whole_number(beside, _COUNTS)
        if fps is not None and count is not None:
            raise RowError("a video says both fps and num_frames.", fix="Keep one of them.")
        return self if fps is None and count is None else evolve(self, fps=fps, num_frames=count)

    def _of_frames(
        self, value: Any, folder: str, processor: Any, *, rate: float | None, beside: Mapping[str, Any]
    ) -> Reference:
        """Frames that the row itself holds."""
        frames = _frames_of(value)
        own = self if (count := whole_number(beside, _COUNTS)) is None else evolve(self, fps=None, num_frames=count)
        if isinstance(frames, np.ndarray):
            height, width = frames.shape[1:3]
            clip = Clip(len(frames), rate, int(width), int(height))
            chosen = chosen_frames(processor.video_processor, clip, own.fps, own.num_frames)
            _refuse_large(f"a video of {len(frames)} frames", clip, chosen)
            return self._reference([_encoded(frames[at]) for at in chosen], clip, chosen)
        pictures = [_picture(frame, at, folder) for at, frame in enumerate(frames)]
        sizes = [_sized(picture, at) for at, picture in enumerate(pictures)]
        other = next((at for at, size in enumerate(sizes) if size != sizes[0]), None)
        if other is not None:
            shown = " and ".join("{} x {}".format(*size) for size in (sizes[0], sizes[other]))
            raise RowError(f"the frames 0 and {other} of a video differ in size: {shown} pixels.", fix="Make them one.")
        clip = Clip(len(pictures), rate, *sizes[0])
        chosen = chosen_frames(processor.video_processor, clip, own.fps, own.num_frames)
        made = self._reference([pictures[at] for at in chosen], clip, chosen)
        for at in dict.fromkeys(chosen):
            _hold_whole(pictures[at], at)
        return made

    def _reference(self, parts: Sequence[Mapping[str, Any]], clip: Clip, frames: Sequence[int]) -> Reference:
        facts = {
            "total": clip.total, "rate": clip.rate, "width": clip.width, "height": clip.height,
            "frames": list(frames), "file": clip.is_file,
        }  # fmt: skip
        made = reference(self, parts, **facts)
        _refuse_large(name_of(made), clip, frames)
        return made

    def about(self, reference: Reference) -> str:
        """How many of its frames a model sees, and their size."""
        facts = facts_of(reference)
        return f"{len(facts['frames'])} of {facts['total']:,} frames, {facts['width']} x {facts['height']} pixels"

    def open(self, reference: Reference) -> Frames:
        """The frames that the model sees: (frames, height, width, 3) uint8, RGB.

        Raises:
            RowError: they cannot be decoded.
        """
        facts = facts_of(reference)
        size = (facts["width"], facts["height"])
        if facts["file"]:
            return decoded(reference, facts["frames"], size)
        pictures = [open_image(part, max_pixels=size[0] * size[1]) for part in reference["parts"]]
        return np.stack([np.asarray(picture) for picture in pictures])

    def blank(self, reference: Reference) -> Frames:
        """As many black frames of the same size."""
        return np.zeros(_shape(reference), np.uint8)

    def noise(self, reference: Reference) -> Frames:
        """As many frames of noise, always the same."""
        return np.random.default_rng(0).integers(0, 256, _shape(reference), np.uint8)

    def given(self, media: list[Any]) -> Any:
        """As a list of lists, with one for each text: some processors take no other."""
        return [media]

    def arguments(self, references: Sequence[Reference]) -> dict[str, Any]:
        """That nothing is sampled again, and what the processor needs to know of the clips that the frames are of."""
        facts = [facts_of(one) for one in references]
        known = [
            {
                "total_num_frames": one["total"], "fps": one["rate"], "width": one["width"], "height": one["height"],
                "duration": one["total"] / one["rate"] if one["rate"] else None, "frames_indices": one["frames"],
            }
            for one in facts
        ]  # fmt: skip
        return {"do_sample_frames": False, "video_metadata": known}


VIDEO = Video()


def _shape(reference: Reference) -> tuple[int, int, int, int]:
    facts = facts_of(reference)
    return len(facts["frames"]), facts["height"], facts["width"], 3


def _apart(value: Any) -> tuple[Any, dict[str, Any]]:
    """The video itself, and what stands beside it.

    Raises:
        RowError: something beside it would change what a model sees, and is not read.
    """
    beside: dict[str, Any] = {}
    while isinstance(value, Mapping):
        held = {key: one for key, one in value.items() if one is not None}
        key = next((key for key in _SOURCES if key in held), None)
        if key is None:
            raise RowError("a video is a mapping without a path, bytes or frames.", fix="Fill it in, or drop the row.")
        value = held.pop(key)
        beside.update({name: one for name, one in held.items() if name not in (*_SOURCES, "type")})
    unread = sorted(name for name in beside if name not in (*_FPS, *_COUNTS))
    if unread:
        raise RowError(
            f'a video has "{unread[0]}" beside it, which is not read.',
            fix="Remove it. Beside a video may stand fps or num_frames; sizes are the processor's.",
        )
    return value, beside


def _frames_of(value: Any) -> Frames | list[Any]:
    """The frames as one array, or as a list of pictures.

    Raises:
        RowError: there are none, or they are not (frames, height, width, 3) uint8.
    """
    if hasattr(value, "save") and hasattr(value, "getbands"):
        return [value]
    if isinstance(value, (list, tuple)):
        if not value:
            raise RowError("a video has no frames.", fix="Fill it in, or drop the row.")
        if not isinstance(value[0], (list, tuple)) and not hasattr(value[0], "__array_interface__"):
            return list(value)
        if hasattr(value[0], "save"):
            return list(value)
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise RowError("the frames of a video differ in size.", fix="Make them one.") from error
        if value.dtype.kind in "iu" and value.size and value.min() >= 0 and value.max() <= 255:
            value = value.astype(np.uint8)  # columns of lists have no type for bytes
    if hasattr(value, "numpy") and not isinstance(value, np.ndarray):
        value = value.numpy()
    if not isinstance(value, np.ndarray):
        raise RowError(
            f"a value of type {type(value).__name__} cannot be read as a video.",
            fix="Give the path of a local file, a list of pictures, or an array of frames.",
        )
    if value.ndim != 4 or value.shape[-1] != 3 or value.dtype != np.uint8 or not value.size:
        raise RowError(
            f"an array of shape {tuple(value.shape)} and type {value.dtype} cannot be read as a video.",
            fix="Give frames as (frames, height, width, 3) uint8, none of which is 0.",
        )
    return value


def _picture(frame: Any, at: int, folder: str) -> Mapping[str, Any]:
    try:
        found = source_of(frame, folder)
        return {"bytes": found["bytes"], "path": found["path"]}
    except RowError as error:
        raise RowError(f"frame {at} of a video: {error.what}", fix=error.fix) from None


def _sized(picture: Mapping[str, Any], at: int) -> tuple[int, int]:
    try:
        return size_of(picture)
    except RowError as error:
        raise RowError(f"frame {at} of a video: {error.what}", fix=error.fix) from None


def _hold_whole(picture: Mapping[str, Any], at: int) -> None:
    try:
        frames_in(picture)
    except RowError as error:
        raise RowError(f"frame {at} of a video: {error.what}", fix=error.fix) from None


def _encoded(frame: Frames) -> dict[str, Any]:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def _refuse_large(name: str, clip: Clip, frames: Sequence[int]) -> None:
    pixels = len(frames) * clip.width * clip.height
    if pixels > MAX_PIXELS:
        raise RowError(
            f"{name}: {len(frames):,} frames of {clip.width:,} x {clip.height:,} pixels would take "
            f"{3 * pixels / 2**20:,.0f} MiB.",
            fix="Take fewer of them, format: {vlm: {num_frames: 32}}, or shrink the video.",
        )
