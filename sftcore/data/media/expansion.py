"""Expands the placeholders of media into the text that becomes their tokens, before anything is decoded.

A processor is run on the placeholders of a row, in their order, with blank images and blank media of the same sizes;
what it puts in their places is the same for the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from sftcore.chat.render import Rendered, Renderer
from sftcore.core.errors import DataError, RowError
from sftcore.core.types import Example, Message, Part, Span
from sftcore.data.images.expand import Expander
from sftcore.data.images.reference import ImageSource, size_of
from sftcore.data.media.modality import Medium, Modality, Reference
from sftcore.rows.media import place_media, spellings

_KEPT = 1024
"""How many shapes of rows are kept with their texts."""
_FAILURES = (ValueError, TypeError, LookupError, ZeroDivisionError, RuntimeError, AttributeError, NotImplementedError)


def with_media(expander: Expander | None, renderer: Renderer, example: Example) -> Rendered:
    """The example as text, with the tokens of its images and media.

    Raises:
        RowError: the model does not read such media, one of them cannot be used, or the numbers of media and
            placeholders differ.
    """
    media: Sequence[Medium] = example.media
    modalities = {one.modality.name: one.modality for one in media}
    processor = None if expander is None else expander.processor
    for name, modality in modalities.items():
        if processor is None or not modality.read_by(processor):
            kind = type(renderer.tokenizer if processor is None else processor).__name__
            raise RowError(
                f"the rows have {name}, and the model reads no {name}: {kind} has no place for it.",
                fix=f"Use a model that reads {name} with its processor, or remove the {name}.",
            )
    assert expander is not None
    references = [_referred(one, at, len(media), expander) for at, one in enumerate(media)]
    images = expander.sources(example.images)
    placed = _with_placeholders(expander.with_placeholders(example), renderer, processor, modalities)
    rendered = renderer.render(placed)
    return _expanded(rendered, expander, images, references, modalities)


def with_own_media(example: Example, modality: Modality, processor: Any) -> Example:
    """The example with the media that the parts of its messages hold, where its format left them there.

    Raises:
        RowError: a part holds none.
    """
    if example.media or not modality.read_by(processor):
        return example
    asked, answered = _turns(example.prompt), _turns(example.completion)
    turns, names = [*_turns(example.messages), *asked, *answered], spellings(modality.name)
    if not any(part.type in names for turn in turns for part in _parts(turn)):
        return example
    placed, held = place_media(turns, (), modality.name, marked=False)
    media = [Medium(modality, one) for one in held]
    if example.messages is not None:
        return attrs.evolve(example, messages=placed, media=media)
    return attrs.evolve(example, prompt=placed[: len(asked)], completion=placed[len(asked) :], media=media)


def _turns(value: Any) -> Sequence[Message]:
    return value if value is not None and not isinstance(value, str) else ()


def _parts(turn: Message) -> Sequence[Part]:
    return turn.content if turn.content is not None and not isinstance(turn.content, str) else ()


def _referred(one: Medium, at: int, count: int, expander: Expander) -> Reference:
    try:
        return one.modality.refer(one.value, expander.folder, expander.processor)
    except RowError as error:
        if count < 2:
            raise
        raise RowError(f"medium {at} of {count}: {error.what}", fix=error.fix) from None


def _with_placeholders(
    example: Example, renderer: Renderer, processor: Any, modalities: Mapping[str, Modality]
) -> Example:
    """The example with the model's own placeholders instead of markers in its plain texts."""
    changed: dict[str, Any] = {}
    for name in ("text", "prompt", "completion"):
        text = getattr(example, name)
        if isinstance(text, str):
            for modality in modalities.values():
                text = text.replace(modality.marker, _in_text(processor, renderer, modality))
            changed[name] = text
    return attrs.evolve(example, **changed) if changed else example


def _in_text(processor: Any, renderer: Renderer, modality: Modality) -> str:
    """The placeholder with what the chat template writes around it."""
    token = _token(processor, modality.name)
    if not renderer.tokenizer.chat_template:
        return token
    turn = Message("user", [Part("text", "A"), Part(modality.name), Part("text", "B")])
    try:
        text = Renderer(renderer.tokenizer).render(Example(messages=[turn], media=[Medium(modality, None)])).text
    except DataError:
        return token
    around = re.search(rf"A\s*([^\sA]*{re.escape(token)}[^\sB]*)\s*B", text)
    return around[1] if around else token


def _token(processor: Any, name: str) -> str:
    return str(getattr(processor, f"{name}_token"))


def _expanded(
    rendered: Rendered,
    expander: Expander,
    images: Sequence[ImageSource],
    references: Sequence[Reference],
    modalities: Mapping[str, Modality],
) -> Rendered:
    processor = expander.processor
    kinds = [*modalities, *(["image"] if getattr(processor, "image_token", None) else [])]
    tokens = {_token(processor, kind): kind for kind in kinds}
    places = list(re.finditer("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))), rendered.text))
    order = [tokens[place.group()] for place in places]
    for kind in dict.fromkeys((*kinds, "image")):
        held = len(images) if kind == "image" else sum(one["modality"] == kind for one in references)
        if order.count(kind) != held:
            raise RowError(
                f"the text has {order.count(kind)} places for {kind}s ({_token(processor, kind)}), but the row has "
                f"{held}.",
                fix=f'Give one {kind} for each place. A chat template has to write a place for {{"type": "{kind}"}}.',
            )
    expander.refuse_reserved(rendered.text, tokens)
    texts = _texts(expander, tuple(order), images, references, modalities)
    text, spans, moved = "", [], [(0, 0)]
    last = 0
    for place, replacement in zip(places, texts, strict=True):
        text += rendered.text[last : place.start()]
        spans.append(Span(len(text), len(text) + len(replacement)))
        text += replacement
        last = place.end()
        moved.append((last, len(text) - last))
    text += rendered.text[last:]
    by_kind = {kind: iter([span for span, one in zip(spans, order, strict=True) if one == kind]) for kind in kinds}
    of_media = tuple(next(by_kind[one["modality"]]) for one in references)
    kept = None if rendered.spans is None else tuple(_moved(span, moved) for span in rendered.spans)
    return attrs.evolve(
        rendered, text=text, spans=kept, image_spans=tuple(spans), media_spans=of_media, unexpanded=rendered.text,
        images=tuple(images), media=tuple(references),
    )  # fmt: skip


def _texts(
    expander: Expander,
    order: tuple[str, ...],
    images: Sequence[ImageSource],
    references: Sequence[Reference],
    modalities: Mapping[str, Modality],
) -> list[str]:
    """What the processor puts in the places, which are of the kinds in `order`."""
    processor = expander.processor
    sizes = tuple(size_of(image, expander.max_pixels) for image in images)
    key = (order, sizes, tuple((one["modality"], one["facts"]) for one in references))
    known: dict[Any, list[str]] = expander.of_media
    if key in known:
        return known[key]
    from PIL import Image

    text = " ".join(_token(processor, kind) for kind in order)
    given: dict[str, Any] = {"images": [[Image.new("RGB", size) for size in sizes]]} if sizes else {}
    for name, modality in modalities.items():
        mine = [one for one in references if one["modality"] == name]
        given |= {modality.argument: modality.given([modality.blank(one) for one in mine]), **modality.arguments(mine)}
    try:
        made = _replacements(processor, text=[text], add_special_tokens=False, **given)
        if tuple(one["type"] for one in made) != order:
            raise ValueError("it does not say what it puts in each place")
        if sizes and _drops_images(processor, text, order, given):
            raise ValueError("it leaves out the images of a text that has other media too")
    except _FAILURES as error:
        names = " and ".join(modalities)
        raise RowError(
            f"{type(processor).__name__} cannot process this row's {names} "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}).",
            fix=f"Use a model whose processor reads {names}, change the row, or drop it.",
        ) from error
    if len(known) >= _KEPT:
        del known[next(iter(known))]
    known[key] = [str(one["replacement"]) for one in made]
    return known[key]


def _drops_images(processor: Any, text: str, order: Sequence[str], given: Mapping[str, Any]) -> bool:
    """Whether the processor makes of this text what it makes of its media alone, as SmolVLM's does."""
    others = [token for token, kind in zip(text.split(" "), order, strict=True) if kind != "image"]
    without = {name: value for name, value in given.items() if name != "images"}
    both = processor(text=[text], add_special_tokens=False, return_tensors="pt", **given)
    alone = processor(text=[" ".join(others)], add_special_tokens=False, return_tensors="pt", **without)
    return bool(_shapes(both) == _shapes(alone))


def _shapes(batch: Mapping[str, Any]) -> dict[str, Any]:
    per_token = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    return {name: getattr(value, "shape", None) for name, value in batch.items() if name not in per_token}


def _replacements(processor: Any, **given: Any) -> Sequence[Mapping[str, Any]]:
    """What the processor puts in the places of one text; some need tensors for it, and others take none."""
    try:
        batch = processor(return_text_replacement_offsets=True, return_tensors="pt", **given)
    except _FAILURES:
        batch = processor(return_text_replacement_offsets=True, **given)
    found: Sequence[Mapping[str, Any]] = batch["text_replacement_offsets"][0]
    return found


def _moved(span: Span, moved: Sequence[tuple[int, int]]) -> Span:
    """The span, moved by what was inserted before its start and before its end."""
    start, end = (next(gained for before, gained in reversed(moved) if before <= at) for at in (span.start, span.end))
    return attrs.evolve(span, start=span.start + start, end=span.end + end)
