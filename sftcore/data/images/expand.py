"""Expands image placeholders into the text that becomes the image's tokens, before the image is decoded.

A vision-language processor replaces the placeholder of each image by as many tokens as the image has, with the rows,
columns and borders of its model family. Their number depends only on the image's size, so it is found with a blank
image of the same size.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from sftcore.chat.render import Rendered, Renderer
from sftcore.core.errors import DataError, RowError
from sftcore.core.types import IMAGE, Example, Message, Part, Span
from sftcore.data.images.reference import MAX_PIXELS, ImageSource, size_of, source_of

_KEPT = 4096
"""How many sizes are kept with their text."""


class Expander:
    """Puts the text of images into rendered texts, for one processor.

    Args:
        processor: a vision-language processor of transformers.
        folder: the folder that relative paths of images start from.
        max_pixels: the most pixels that an image may have.
    """

    def __init__(self, processor: Any, folder: str = "", max_pixels: int = MAX_PIXELS) -> None:
        self.processor = processor
        self.folder = folder
        self.max_pixels = max_pixels
        self._texts: dict[tuple[int, int], str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the known texts: workers find their own, and no cache key depends on them."""
        return {**self.__dict__, "_texts": {}}

    @property
    def placeholder(self) -> str:
        """The token that stands for one image in a text that the processor reads."""
        return str(self.processor.image_token)

    @functools.cached_property
    def placeholder_in_text(self) -> str:
        """The placeholder with what the chat template writes around it, for use in plain texts."""
        if not self.processor.tokenizer.chat_template:
            return self.placeholder
        turn = Message("user", [Part("text", "A"), Part("image"), Part("text", "B")])
        try:
            text = Renderer(self.processor.tokenizer).render(Example(messages=[turn], images=[b""])).text
        except DataError:
            return self.placeholder
        around = re.search(rf"A\s*([^\sA]*{re.escape(self.placeholder)}[^\sB]*)\s*B", text)
        return around[1] if around else self.placeholder

    def with_placeholders(self, example: Example) -> Example:
        """The example with the model's own placeholder instead of `IMAGE` in its plain texts."""
        if not example.images or self.placeholder_in_text == IMAGE:
            return example
        texts = {name: getattr(example, name) for name in ("text", "prompt", "completion")}
        changed: dict[str, Any] = {
            name: text.replace(IMAGE, self.placeholder_in_text) for name, text in texts.items() if isinstance(text, str)
        }
        return attrs.evolve(example, **changed) if changed else example

    def sources(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """References to an example's images.

        Raises:
            RowError: one of them is not an image or does not exist; names its number.
        """
        found = []
        for number, image in enumerate(images):
            with _numbered(number, len(images)):
                found.append(source_of(image, self.folder))
        return found

    def expand(self, rendered: Rendered, sources: Sequence[ImageSource]) -> Rendered:
        """The text as the model will read it, with its spans moved, and the characters of images as `image_spans`.

        Raises:
            RowError: the numbers of images and placeholders differ, or an image cannot be used.
        """
        placeholder = self.placeholder
        parts = rendered.text.split(placeholder)
        if len(parts) - 1 != len(sources):
            raise RowError(
                f"the text has {_counted(len(parts) - 1, 'image placeholder')} ({placeholder}), but the row has "
                f"{_counted(len(sources), 'image')}.",
                fix="Give one image for each placeholder. A text that only mentions it must spell it differently.",
            )
        if not sources:
            return rendered
        text, moved, image_spans = parts[0], [(0, 0)], []
        for number, (source, part) in enumerate(zip(sources, parts[1:], strict=True)):
            with _numbered(number, len(sources)):
                tokens = self.text_of(size_of(source, self.max_pixels))
            image_spans.append(Span(len(text), len(text) + len(tokens)))
            text += tokens + part
            before = sum(map(len, parts[: number + 1])) + (number + 1) * len(placeholder)
            moved.append((before, len(text) - len(part) - before))
        spans = None if rendered.spans is None else tuple(_moved(span, moved) for span in rendered.spans)
        return attrs.evolve(
            rendered,
            text=text,
            spans=spans,
            image_spans=tuple(image_spans),
            unexpanded=rendered.text,
            images=tuple(sources),
        )

    def text_of(self, size: tuple[int, int]) -> str:
        """The text that stands for an image of this width and height.

        Raises:
            RowError: the processor cannot process an image of this size, or does not say what it replaces.
        """
        if size in self._texts:
            return self._texts[size]
        from PIL import Image

        width, height = size
        try:
            batch = self.processor(
                images=[[Image.new("RGB", size)]],
                text=[self.placeholder],
                add_special_tokens=False,
                return_text_replacement_offsets=True,
            )
            text = str(batch["text_replacement_offsets"][0][0]["replacement"])
        except (ValueError, TypeError, LookupError, ZeroDivisionError, RuntimeError, AttributeError) as error:
            raise RowError(
                f"{type(self.processor).__name__} cannot process an image of {width} x {height} pixels "
                f"({type(error).__name__}: {str(error).partition(chr(10))[0]}).",
                fix="Resize it, or drop the row.",
            ) from error
        if len(self._texts) >= _KEPT:
            del self._texts[next(iter(self._texts))]
        self._texts[size] = text
        return text


def is_vision(processor: Any) -> bool:
    """Whether a processor reads images as well as text."""
    return getattr(processor, "image_processor", None) is not None and hasattr(processor, "tokenizer")


def _moved(span: Span, moved: Sequence[tuple[int, int]]) -> Span:
    """The span, moved by the text that was inserted for images before its start and before its end."""
    start, end = (max(gained for before, gained in moved if before <= at) for at in (span.start, span.end))
    return attrs.evolve(span, start=span.start + start, end=span.end + end)


@contextlib.contextmanager
def _numbered(number: int, count: int) -> Iterator[None]:
    """Name the image in errors if there are several."""
    try:
        yield
    except RowError as error:
        if count < 2:
            raise
        raise RowError(f"image {number} of {count}: {error.what}", fix=error.fix) from None


def _counted(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
