"""Rows with images and videos beside their texts or conversations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
from attrs.validators import ge, gt, optional

from sftcore import Example, Formatter, Message, Row, RowError, hookimpl, plugin
from sftcore.plugin_api import IMAGE, Medium, Video
from sftcore.rows import (
    images_of,
    is_trained_turns,
    media_of,
    place_images,
    place_media,
    read_messages,
    single_out,
    template_kwargs_of,
    text_of,
    tools_of,
    value_of,
    with_system,
)
from sftcore_plugins.formats._sharegpt_turns import ShareGPTTurns


def _is_size(instance: object, attribute: object, value: int | list[int]) -> None:
    sides = value if isinstance(value, list) else [value]
    if len(sides) != (2 if isinstance(value, list) else 1) or min(sides, default=0) < 1:
        raise ValueError(f"image_size is a number of pixels, or [width, height]; got {value}")


@plugin
class VisionLanguage:
    """Rows with images or videos, and messages, conversations, a prompt with its completion, or a text.

    A place for an image is a part {"type": "image"} of a message, which may hold its image itself, or the `marker` in a
    plain string. Conversations without any place get their images before the first user's words. Rows without images
    may stand among the others.

    Videos have the same places: a part {"type": "video"}, or `<video>` in a string. `fps` or `num_frames` says which
    frames of each a model sees; without them its processor chooses.

    Images are resized before the model's processor reads them, in their shape: to `max_pixels` at most and `min_pixels`
    at least, or to an `image_size` of this many pixels on the longer side at most; [width, height] is exact. What a
    part says of its own image goes first.
    """

    images: str = "images"
    image: str = "image"
    videos: str = "videos"
    video: str = "video"
    fps: float | None = attrs.field(default=None, validator=optional(gt(0)))
    num_frames: int | None = attrs.field(default=None, validator=optional(gt(0)))
    marker: str = IMAGE
    messages: str = "messages"
    conversations: str = "conversations"
    prompt: str = "prompt"
    completion: str = "completion"
    text: str = "text"
    tools: str = "tools"
    system: str = "system"
    template_kwargs: str = "chat_template_kwargs"
    roles: dict[str, str] = attrs.field(factory=dict)
    trained_turns: str = attrs.field(default="all", validator=is_trained_turns)
    max_pixels: int | None = attrs.field(default=None, validator=optional(ge(1)))
    min_pixels: int | None = attrs.field(default=None, validator=optional(ge(1)))
    image_size: int | list[int] | None = attrs.field(default=None, validator=optional(_is_size))

    def __attrs_post_init__(self) -> None:
        if self.image_size is not None and (self.max_pixels, self.min_pixels) != (None, None):
            raise ValueError("image_size and max_pixels or min_pixels both say how large images are: drop one")
        if self.max_pixels is not None and (self.min_pixels or 0) > self.max_pixels:
            raise ValueError(f"min_pixels is {self.min_pixels:,}, more than max_pixels, {self.max_pixels:,}")
        if self.fps is not None and self.num_frames is not None:
            raise ValueError("fps and num_frames both say which frames of a video a model sees: drop one")

    media: ClassVar[tuple[str, ...]] = ("video", "videos")

    @hookimpl
    def options_from(self, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
        field = settings.get("dataset_text_field")
        return None if field is None else {"text": field}

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        found = set(columns)
        pictures = {self.images, self.image, self.videos, self.video} & found
        return bool(pictures) and "input_ids" not in found and self._shape(found) is not None

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        shape = self._shape(set(columns))
        readers = {"messages": self._chat, "conversations": self._sharegpt, "prompt": self._pair, "text": self._text}
        return self._resized(readers[shape or "messages"])

    def _resized(self, reader: Callable[[Row], Example]) -> Formatter:
        """The reader, whose images are to have the size that the options ask for."""
        names = ("max_pixels", "min_pixels", "image_size")
        asked = {name: value for name in names if (value := getattr(self, name)) is not None}
        if not asked:
            return reader

        def read(row: Row) -> Example:
            example = reader(row)
            return attrs.evolve(example, images=[{"image": one, **asked} for one in example.images])

        return read

    def _shape(self, columns: set[str]) -> str | None:
        if self.messages in columns:
            return "messages"
        if self.conversations in columns:
            return "conversations"
        if {self.prompt, self.completion} <= columns:
            return "prompt"
        return "text" if self.text in columns else None

    # --- Conversations --------------------------------------------------------------------------------------------
    def _chat(self, row: Row) -> Example:
        turns = self._turns(value_of(row, self.messages), self.messages)
        return self._conversation(row, with_system(turns, row, self.system))

    def _sharegpt(self, row: Row) -> Example:
        return self._conversation(row, ShareGPTTurns(self.conversations, self.system, self.roles).messages_of(row))

    def _conversation(self, row: Row, turns: list[Message]) -> Example:
        placed, media = self._with_videos(row, turns)
        placed, images = place_images(placed, images_of(row, self.images, self.image), self.marker, beside=("video",))
        return Example(
            messages=single_out(placed, self.trained_turns),
            images=images,
            media=media,
            tools=tools_of(row, self.tools),
            template_kwargs=template_kwargs_of(row, self.template_kwargs),
        )

    def _turns(self, turns: Any, column: str) -> list[Message]:
        return read_messages(turns, column, self.roles, format_name="vlm")

    # --- Prompt and completion, text ------------------------------------------------------------------------------
    def _pair(self, row: Row) -> Example:
        prompt, completion = value_of(row, self.prompt), value_of(row, self.completion)
        images = images_of(row, self.images, self.image)
        if isinstance(prompt, str) and isinstance(completion, str):
            media = self._media(self._videos_of(row))
            return Example(prompt=self._marked(prompt), completion=self._marked(completion), images=images, media=media)
        if isinstance(prompt, str) or isinstance(completion, str):
            raise RowError(f'"{self.prompt}" and "{self.completion}" are not both texts or both lists of messages.')
        asked = with_system(self._turns(prompt, self.prompt), row, self.system)
        turns, media = self._with_videos(row, [*asked, *self._turns(completion, self.completion)])
        turns, images = place_images(turns, images, self.marker, beside=("video",))
        return Example(
            prompt=turns[: len(asked)],
            completion=turns[len(asked) :],
            images=images,
            media=media,
            tools=tools_of(row, self.tools),
            template_kwargs=template_kwargs_of(row, self.template_kwargs),
        )

    def _text(self, row: Row) -> Example:
        text, images = self._marked(text_of(row, self.text)), images_of(row, self.images, self.image)
        return Example(text=text, images=images, media=self._media(self._videos_of(row)))

    # --- Videos ---------------------------------------------------------------------------------------------------
    def _with_videos(self, row: Row, turns: list[Message]) -> tuple[list[Message], list[Medium]]:
        placed, videos = place_media(turns, self._videos_of(row), "video")
        return placed, self._media(videos)

    def _videos_of(self, row: Row) -> list[Any]:
        return media_of(row, self.video, self.videos)

    def _media(self, videos: list[Any]) -> list[Medium]:
        return [Medium(Video(fps=self.fps, num_frames=self.num_frames), one) for one in videos]

    def _marked(self, text: str) -> str:
        return text.replace(self.marker, IMAGE)
