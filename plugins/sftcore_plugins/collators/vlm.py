"""Batches of a vision-language model: tokens as of any other run, images processed when they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen

from sftcore import Collator, ConflictError, DataError, Plan, Probe, Problem, RowError, hookimpl, plugin
from sftcore.plugin_api import (
    DOCUMENTS,
    IGNORED,
    MAX_PIXELS,
    Modality,
    Video,
    facts_of_processor,
    filler_of,
    flatten_rows,
    media_features,
    multiple_of,
    open_image,
    pad_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from PIL.Image import Image

    Batch = dict[str, torch.Tensor]

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
"""What processors say of each token: which of them stand for an image. 0 for text."""
OWN = ("labels",)
"""What processors return as well, and the run makes itself."""


@plugin
class VisionLanguage:
    """Images decoded and processed for each batch by the model's own processor; texts are masked as in any other run.

    `flattened` lays all documents of a batch end to end in one row, as `padding_free` does.
    """

    flattened: bool = False

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        config = probe.model_config
        if config is not None and "vision_config" not in config and not plan.model.vision:
            yield Problem(
                "the collator vlm is for vision-language models, and this model reads text alone.",
                "collator",
                "Drop it, or name a vision-language model.",
            )

    @hookimpl
    def flattens(self, plan: Plan) -> bool:
        return self.flattened or bool(plan.settings.get("padding_free"))

    @hookimpl
    def make_collator(self, processor: Any, plan: Plan) -> Collator:
        if getattr(processor, "image_processor", None) is None:
            raise ConflictError(
                f"the collator vlm needs the model's processor, and {type(processor).__name__} does not read images.",
                fix="Pass processing_class=AutoProcessor.from_pretrained(…), or leave collator out.",
            )
        limit = plan.settings.get("max_image_pixels") or MAX_PIXELS
        return VisionCollator(processor, filler_of(processor), multiple_of(plan), self.flattens(plan), limit)


@frozen
class VisionCollator:
    """Rows with `input_ids`, `labels` and `documents` into a batch.

    The layout is that of `sftcore.plugin_api.pad_rows`, or with `flattened` of `flatten_rows`: see there for shapes
    and dtypes. Beside it stand what the processor makes of the images, in the order of the documents (pixel_values and
    whatever tells the model their grid, sizes or mask, in the processor's own shapes) and of the videos, and what it
    gives for each token (token_type_ids, mm_token_type_ids: (rows, width) int64; a cross_attention_mask: (rows, width,
    images, tiles)). Token types that tell a prompt from what is learned (PaliGemma's) are made from the labels: 0
    before the first token that counts, 1 from there on. Labels are the run's own, whatever the processor returns.
    `images` and `modalities` say that it takes rows with images and with these media, and `images_by_row` names the
    processor if images stand in the rows of the batch, so that rows with different numbers of images cannot share one,
    nor documents with images a row.

    Raises:
        RowError: an image or a video cannot be decoded.
        DataError: the processor makes other tokens of a text than it did when the rows were prepared; it returns what
            the batch has already; or rows share a batch that cannot.
    """

    processor: Any
    pad_token_id: int
    pad_to_multiple_of: int = 1
    flattened: bool = False
    max_pixels: int = MAX_PIXELS
    images: bool = field(default=True, init=False)
    modalities: Mapping[str, Modality] = field(factory=lambda: {"video": Video()}, init=False)

    facts: Any = field(init=False, repr=False, eq=False)

    @facts.default
    def _found_out(self) -> Any:
        return facts_of_processor(self.processor)

    @property
    def images_by_row(self) -> str:
        """The name of a processor whose images belong to the rows of a batch, as cross-attention has it; or empty."""
        return self.facts.name if self.facts.by_document else ""

    @property
    def sees_prompts_whole(self) -> str:
        """The name of a processor whose model lets the tokens of a prompt see each other both ways; or empty."""
        return self.facts.name if self.facts.marks_prompt else ""

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        build = flatten_rows if self.flattened else pad_rows
        batch = build(rows, pad_token_id=self.pad_token_id, pad_to_multiple_of=self.pad_to_multiple_of)
        documents = [document for row in rows for document in _documents(row)]
        seen = [one for one, _ in documents if one["text"] is not None]
        if any(one.get("media") for one in seen):
            features = media_features(self.processor, seen, self.modalities, self.max_pixels)
        else:
            features = self._features(seen)
        if self.images_by_row and features:
            self._hold_rows(rows, documents)
        given = {name: features.pop(name, None) for name in dict.fromkeys((*TOKEN_TYPES, *self.facts.per_token))}
        for name, values in given.items():
            if values is not None or (name in TOKEN_TYPES and name in self.processor.model_input_names):
                batch[name] = self._spread(name, values, rows, documents, batch["input_ids"])
        if self.facts.marks_prompt:
            batch["token_type_ids"] = self._prompt_types(rows, documents, batch["labels"])
        if twice := sorted(features.keys() & batch.keys()):
            raise DataError(
                f"{self.facts.name} returns {', '.join(twice)}, which the batch has of its own.",
                fix="Use a collator of your own for this model.",
            )
        return {**batch, **features}

    def _features(self, documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the processor makes of these documents, its tensors as they are, without padding of texts."""
        if not documents:
            return {}
        images = [self._opened(one) for one in documents]
        specials = {bool(one["special"]) for one in documents}
        if len(specials) > 1:
            raise DataError("texts and conversations with images stand in one batch.", fix="Give rows of one shape.")
        found = self.processor(
            images=images if self.facts.nested else [image for one in images for image in one],
            text=[one["text"] for one in documents],
            add_special_tokens=specials.pop(),
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        made = dict(found)
        self._hold(made.pop("input_ids"), made.pop("attention_mask"), documents)
        return {name: value for name, value in made.items() if name not in OWN}

    def _opened(self, document: Mapping[str, Any]) -> list[Image]:
        try:
            return [open_image(source, self.max_pixels) for source in document["images"]]
        except RowError as error:
            raise RowError(error.what, fix=error.fix, where=f"row {document['row']}", row=document["row"]) from error

    def _hold(self, ids: Any, mask: Any, documents: Sequence[Mapping[str, Any]]) -> None:
        """Hold that the processor made the tokens that the rows were prepared with."""
        for row, counts, document in zip(ids, mask, documents, strict=True):
            got, wanted = row[counts.bool()].numpy(), np.asarray(document["input_ids"])
            if len(got) < len(wanted) or not (got[: len(wanted)] == wanted).all():
                raise DataError(
                    f"the processor makes {len(got)} tokens of a text with {len(document['images'])} images, and the "
                    f"row was prepared with {len(wanted)}.",
                    where=f"row {document['row']}",
                    fix="If an image was changed since, prepare the rows anew: dataset_cache: false. "
                    "If none was, please report it.",
                )

    def _hold_rows(self, rows: Any, documents: Any) -> None:
        """Hold that each row is one document with images, where a model looks for images in the row of the batch."""
        name = self.images_by_row
        if len(documents) != len(rows) or self.flattened:
            raise DataError(
                f"{name}'s model looks for images in the rows of a batch, so documents with images cannot share a row.",
                fix="Set packing and padding_free to false.",
            )
        numbers = {len(one["images"]) for one, _ in documents}
        if len(numbers) > 1:
            what = "with and without images" if 0 in numbers else "with different numbers of images"
            raise DataError(
                f"{name}'s model looks for images in the rows of a batch, and rows {what} share one.",
                fix="Set per_device_train_batch_size: 1 with gradient_accumulation_steps, or keep the rows apart.",
            )

    def _spread(self, name: str, given: Any, rows: Any, documents: Any, ids: torch.Tensor) -> torch.Tensor:
        """What is given for each token in the batch's layout: (rows, width, ...); text and padding as it pads them."""
        import torch

        shape = ids.shape if given is None else (*ids.shape, *given.shape[2:])
        dtype = ids.dtype if given is None else given.dtype
        spread = torch.full(shape, self.facts.per_token.get(name, 0), dtype=dtype)
        number = 0
        starts = _starts(rows, self.flattened)
        for (document, length), (row, start) in zip(documents, starts, strict=True):
            if document["text"] is not None and given is not None:
                spread[row, start : start + length] = given[number][:length]
                number += 1
        return spread

    def _prompt_types(self, rows: Any, documents: Any, labels: torch.Tensor) -> torch.Tensor:
        """0 for each document's tokens before the first that counts, and 1 from there on: (rows, width) int64."""
        import torch

        types = torch.ones_like(labels)
        for (document, length), (row, start) in zip(documents, _starts(rows, self.flattened), strict=True):
            counts = np.asarray(document["labels"]) != IGNORED
            types[row, start : start + (int(counts.argmax()) if counts.any() else length)] = 0
        return types


def _documents(row: Mapping[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """The documents of a row with their tokens and labels, and their lengths."""
    ids = row["input_ids"]
    labels = ids if row.get("labels") is None else row["labels"]
    lengths = row.get("seq_lengths")
    lengths = [len(ids)] if lengths is None else [int(length) for length in lengths]
    given = row.get(DOCUMENTS)
    given = [{"text": None, "images": [], "media": []}] * len(lengths) if given is None else given
    found, start = [], 0
    for document, length in zip(given, lengths, strict=True):
        part = slice(start, start + length)
        found.append(({**document, "input_ids": ids[part], "labels": labels[part]}, length))
        start += length
    return found


def _starts(rows: Sequence[Mapping[str, Any]], flattened: bool) -> list[tuple[int, int]]:
    """Where each document begins in the batch: row and column."""
    found, offset = [], 0
    for number, row in enumerate(rows):
        start = offset if flattened else 0
        for _, length in _documents(row):
            found.append((0 if flattened else number, start))
            start += length
        offset = start
    return found
