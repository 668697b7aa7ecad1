"""Which frames of a clip a model sees: as the model's own video processor samples them, or evenly where it cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftcore.core.errors import RowError

if TYPE_CHECKING:
    from sftcore.data.media.clips import Clip


def chosen_frames(video_processor: Any, clip: Clip, fps: float | None, num_frames: int | None) -> list[int]:
    """The numbers of the frames that the model sees, in order; the same for the same clip.

    Args:
        video_processor: of transformers; its `sample_frames` chooses.
        clip: how many frames there are, and how many of them a second has.
        fps: how many frames of a second are wanted; all, if a second has fewer.
        num_frames: how many frames are wanted; all, if there are fewer.

    Raises:
        RowError: fps is wanted of frames that do not say how fast they are.
    """
    if fps is not None and clip.rate is None:
        raise RowError(
            f"fps: {fps:g} cannot be taken of {clip.total} frames that do not say how fast they are.",
            fix='Give {"frames": […], "fps": …} in the row, or set num_frames instead of fps.',
        )
    if num_frames is not None and num_frames >= clip.total:
        return list(range(clip.total))
    wanted: dict[str, Any] = {}
    if num_frames is not None:
        wanted["num_frames"] = num_frames
    elif fps is not None and clip.rate is not None:
        wanted["fps"] = min(fps, clip.rate)
    elif not getattr(video_processor, "do_sample_frames", False) or clip.rate is None:
        return list(range(clip.total))
    return _sampled(video_processor, clip, wanted) or _evenly(clip, wanted)


def _sampled(video_processor: Any, clip: Clip, wanted: Mapping[str, Any]) -> list[int]:
    """What the processor chooses; [] where it can choose nothing of this clip, as of a very short one."""
    from transformers.video_utils import VideoMetadata

    facts = VideoMetadata(
        total_num_frames=clip.total, fps=clip.rate, width=clip.width, height=clip.height, duration=clip.duration
    )
    try:
        found = [int(at) for at in video_processor.sample_frames(metadata=facts, **wanted)]
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError):
        return []
    return found if all(0 <= at < clip.total for at in found) else []


def _evenly(clip: Clip, wanted: Mapping[str, Any]) -> list[int]:
    count = wanted.get("num_frames")
    if count is None:
        count = math.floor(clip.total / (clip.rate or 1.0) * wanted["fps"]) if "fps" in wanted else clip.total
    count = min(max(count, 1), clip.total)
    return [at * clip.total // count for at in range(count)]


def fps_asked_for(beside: Mapping[str, Any], names: Sequence[str]) -> float | None:
    """The frames of a second that stand beside a video under the first of these names.

    Raises:
        RowError: it is not a number above 0.
    """
    name = next((name for name in names if beside.get(name) is not None), None)
    if name is None:
        return None
    value = beside[name]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (0 < number < math.inf):
        raise RowError(f'"{name}" beside a video is a number above 0, got {value!r}.', fix="Correct or remove it.")
    return number


def whole_number(beside: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """The number of frames that stands beside a video under the first of these names.

    Raises:
        RowError: it is not a whole number above 0.
    """
    name = next((name for name in names if beside.get(name) is not None), None)
    if name is None:
        return None
    value = beside[name]
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not is_whole or value < 1:
        raise RowError(
            f'"{name}" beside a video is a whole number above 0, got {value!r}.', fix="Correct or remove it."
        )
    return int(value)
