"""Expands image placeholders into the text that becomes the image's tokens, before the image is decoded.

A vision-language processor replaces the placeholder of each image by as many tokens as the image has, with the rows,
columns and borders of its model family. With most of them these depend on the image's size alone, so they are found
once for each size, with a blank image; others are asked for each row as a whole. Which it is was found out before (see
sftcore.data.images.processors).
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import attrs

from sftcore.chat.render import Rendered, Renderer
from sftcore.core.errors import DataError, ModelError, RowError
from sftcore.core.types import IMAGE, Example, Message, Part, Span
from sftcore.data.images.given import source_of
from sftcore.data.images.processors import (
    BY_ROW,
    FAULTS,
    ProcessorFacts,
    expansion_of,
    facts_of_processor,
    first_line,
    placeholder_of,
)
from sftcore.data.images.reference import MAX_PIXELS, ImageSource, size_of
from sftcore.data.images.whole import frames_in
from sftcore.data.images.whole_row import Piece, Size, WholeRows

_Given = TypeVar("_Given")
_Found = TypeVar("_Found")
_USUAL = (448, 448)
"""The size of a picture that any processor takes."""
_KEPT = 4096
"""How many sizes are kept with their text."""


class Expander:
    """Puts the text of images into rendered texts, for one processor.

    Args:
        processor: a vision-language processor of transformers.
        folder: the folder that relative paths of images start from.
        max_pixels: the most pixels that an image may have.
        remote: whether images at web addresses are fetched.
    """

    def __init__(self, processor: Any, folder: str = "", max_pixels: int = MAX_PIXELS, *, remote: bool = False) -> None:
        self.processor = processor
        self.folder = folder
        self.max_pixels = max_pixels
        self.remote = remote
        self.of_media: dict[Any, list[str]] = {}
        self.facts: ProcessorFacts = facts_of_processor(processor)
        self._texts: dict[Size, str] = {}
        by_row = self.facts.known == BY_ROW
        self._rows = WholeRows(processor, self.placeholder, nested=self.facts.nested) if by_row else None

    def __getstate__(self) -> dict[str, Any]:
        """Without the known texts: workers find their own, and no cache key depends on them."""
        return {**self.__dict__, "_texts": {}, "of_media": {}}

    @property
    def reads_images(self) -> bool:
        """Whether the processor reads images, and not sounds alone."""
        return getattr(self.processor, "image_processor", None) is not None

    @functools.cached_property
    def placeholder(self) -> str:
        """The token that stands for one image in a text that the processor reads; empty if it has none."""
        return placeholder_of(self.processor)

    @functools.cached_property
    def reserved(self) -> tuple[str, ...]:
        """The tokens in whose place the model reads a feature of an image or another medium."""
        tokenizer, found = self.processor.tokenizer, [self.placeholder]
        for name in ("image", "video", "audio"):
            number = getattr(self.processor, f"{name}_token_id", None)
            token = getattr(self.processor, f"{name}_token", None)
            found.append(str(tokenizer.convert_ids_to_tokens(number) if isinstance(number, int) else token or ""))
        found.append(self._repeated())
        whole = (token for token in found if token and len(tokenizer.encode(token, add_special_tokens=False)) == 1)
        return tuple(dict.fromkeys(whole))

    def _repeated(self) -> str:
        """The token that stands for a part of an image, which some processors do not name; empty if it is not known."""
        if self._rows is not None or self.facts.refusal or not self.reads_images:
            return ""
        try:
            text = self.text_of(_USUAL)
        except RowError:
            return ""
        added = sorted(self.processor.tokenizer.get_added_vocab(), key=len, reverse=True)
        there = Counter(re.findall("|".join(map(re.escape, added)), text)) if added else Counter()
        return there.most_common(1)[0][0] if there else ""

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
        if not example.images or not self.reads_images or self.placeholder_in_text == IMAGE:
            return example
        changed: dict[str, Any] = {
            name: text.replace(IMAGE, self.placeholder_in_text)
            for name in ("text", "prompt", "completion")
            if isinstance(text := getattr(example, name), str)
        }
        return attrs.evolve(example, **changed) if changed else example

    def sources(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """References to an example's images.

        Raises:
            RowError: one of them is not an image or does not exist; names its number.
            ModelError: the processor cannot be used for rows with images.
        """
        if images and self.facts.refusal:
            raise ModelError(
                f"{self.facts.name} {self.facts.refusal}, so its model cannot be trained on images.",
                fix="Use another vision-language model, or train this one on rows without images.",
            )
        return _each(images, lambda image: source_of(image, self.folder, remote=self.remote))

    def most_frames(self, sources: Sequence[ImageSource]) -> int:
        """The most pictures that one of these images holds; 2 for any more than one.

        Raises:
            RowError: an image is damaged; names its number.
        """
        return max(_each(sources, lambda source: frames_in(source, self.max_pixels)), default=0)

    def refuse_reserved(self, text: str, own: Collection[str]) -> None:
        """Refuse words that the model would read as a feature that there is not; places that are filled are `own`.

        Raises:
            RowError: the text has one.
        """
        if not [token for token in self.reserved if token in text and token not in own]:
            return
        others = set(self.reserved).difference(own)
        for token in own:
            text = text.replace(token, " ") if token else text
        if spelled := next((token for token in self.reserved if token in others and token in text), None):
            raise RowError(
                f"the text has {spelled}, in whose place the model reads a feature, and the row has none for it.",
                fix="A text that only mentions it must spell it differently.",
            )

    def expand(self, rendered: Rendered, sources: Sequence[ImageSource]) -> Rendered:
        """The text as the model will read it, with its spans moved, and the characters of images as `image_spans`.

        Raises:
            RowError: the numbers of images and placeholders differ, or an image cannot be used.
        """
        placeholder = self.placeholder
        parts = rendered.text.split(placeholder) if placeholder else [rendered.text]
        if len(parts) - 1 != len(sources):
            raise RowError(
                f"the text has {_counted(len(parts) - 1, 'image placeholder')} ({placeholder}), but the row has "
                f"{_counted(len(sources), 'image')}.",
                fix="Give one image for each placeholder. A text that only mentions it must spell it differently.",
            )
        self.refuse_reserved(rendered.text, [placeholder])
        if not sources:
            return self._without_images(rendered) if self.facts.changes_texts else rendered
        if self.facts.most is not None and len(sources) > self.facts.most:
            most = _counted(self.facts.most, "image")
            raise RowError(
                f"the row has {len(sources)} images, and {self.facts.name} takes at most {most} in one.",
                fix="Drop the others, or the row.",
            )
        sizes = _each(sources, lambda source: size_of(source, self.max_pixels))
        if self._rows is None:
            text, images, pieces = self._by_size(parts, sizes)
        else:
            text, images, pieces = self._by_row(rendered.text, sizes)
        spans = None if rendered.spans is None else tuple(_moved(span, pieces) for span in rendered.spans)
        return attrs.evolve(
            rendered,
            text=text,
            spans=spans,
            image_spans=tuple(Span(*one) for one in images),
            unexpanded=rendered.text,
            images=tuple(sources),
        )

    def _without_images(self, rendered: Rendered) -> Rendered:
        """A text without images as the processor has it, but for one that the tokenizer itself begins."""
        if rendered.add_special_tokens:
            return rendered
        text, _, pieces = self._by_row(rendered.text, [])
        spans = None if rendered.spans is None else tuple(_moved(span, pieces) for span in rendered.spans)
        return attrs.evolve(rendered, text=text, spans=spans)

    def _by_size(
        self, parts: Sequence[str], sizes: Sequence[Size]
    ) -> tuple[str, Sequence[tuple[int, int]], Sequence[Piece]]:
        text, before, images, pieces = parts[0], len(parts[0]), [], [Piece(0, 0, len(parts[0]))]
        for tokens, part in zip(_each(sizes, self.text_of), parts[1:], strict=True):
            images.append((len(text), len(text) + len(tokens)))
            text += tokens + part
            before += len(self.placeholder)
            pieces.append(Piece(before, len(text) - len(part), len(part)))
            before += len(part)
        return text, images, pieces

    def _by_row(self, text: str, sizes: Sequence[Size]) -> tuple[str, Sequence[tuple[int, int]], Sequence[Piece]]:
        assert self._rows is not None
        try:
            found = self._rows(text, sizes)
        except FAULTS as error:
            raise RowError(
                f"{self.facts.name} cannot process a row with {_sizes_in_words(sizes)} ({first_line(error)}).",
                fix="Change it, or drop the row.",
            ) from error
        return found.text, found.images, found.pieces

    def text_of(self, size: Size) -> str:
        """The text that stands for an image of this width and height.

        Raises:
            RowError: the processor cannot process an image of this size.
        """
        if size in self._texts:
            return self._texts[size]
        width, height = size
        try:
            text = expansion_of(self.processor, self.placeholder, size, nested=self.facts.nested)
        except FAULTS as error:
            raise RowError(
                f"{self.facts.name} cannot process an image of {width} x {height} pixels ({first_line(error)}).",
                fix="Resize it, or drop the row.",
            ) from error
        if len(self._texts) >= _KEPT:
            del self._texts[next(iter(self._texts))]
        self._texts[size] = text
        return text


def is_vision(processor: Any) -> bool:
    """Whether a processor reads images or sounds as well as text."""
    parts = ("image_processor", "feature_extractor", "audio_processor")
    return hasattr(processor, "tokenizer") and any(getattr(processor, name, None) is not None for name in parts)


def _moved(span: Span, pieces: Sequence[Piece]) -> Span:
    """The span, moved by what was inserted before the texts that its start and its end stand in."""
    start, end = (next(one for one in reversed(pieces) if one.before <= at) for at in (span.start, span.end))
    moved = start.after - start.before, end.after - end.before
    return attrs.evolve(span, start=span.start + moved[0], end=span.end + moved[1])


def _sizes_in_words(sizes: Sequence[Size]) -> str:
    told = ", ".join(f"{width} x {height}" for width, height in sizes[:4])
    return f"{_counted(len(sizes), 'image')} of {told}{', ...' if len(sizes) > 4 else ''} pixels"


def _each(values: Sequence[_Given], ask: Callable[[_Given], _Found]) -> list[_Found]:
    """What is found for each image; errors name it if there are several."""
    if len(values) == 1:
        return [ask(values[0])]
    found = []
    for number, value in enumerate(values):
        try:
            found.append(ask(value))
        except RowError as error:
            raise RowError(f"image {number} of {len(values)}: {error.what}", fix=error.fix) from None
    return found


def _counted(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
