"""Batches of a vision-language model: tokens as of any other run, images processed when they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen

from sftcore import Collator, ConflictError, DataError, Plan, Probe, Problem, RowError, hookimpl, plugin
from sftcore.plugin_api import (
    DOCUMENTS,
    MAX_PIXELS,
    filler_of,
    flatten_rows,
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


@plugin
class VisionLanguage:
    """Images decoded and processed for each batch by the model's own processor; texts are masked as in any other run.

    `flattened` lays all documents of a batch end to end in one row, as `padding_free` does.
    """

    flattened: bool = False

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        config = probe.model_config
        if config is not None and "vision_config" not in config:
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
    whatever tells the model their grid, sizes or mask, in the processor's own shapes), and token_type_ids or
    mm_token_type_ids (rows, width) int64 where the processor gives them. `images` says that it takes rows with images.

    Raises:
        RowError: an image cannot be decoded.
        DataError: the processor makes other tokens of a text than it did when the rows were prepared.
    """

    processor: Any
    pad_token_id: int
    pad_to_multiple_of: int = 1
    flattened: bool = False
    max_pixels: int = MAX_PIXELS
    images: bool = field(default=True, init=False)

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        build = flatten_rows if self.flattened else pad_rows
        batch = build(rows, pad_token_id=self.pad_token_id, pad_to_multiple_of=self.pad_to_multiple_of)
        documents = [document for row in rows for document in _documents(row)]
        features = self._features([one for one, _ in documents if one["images"]])
        token_types = {name: features.pop(name, None) for name in TOKEN_TYPES}
        for name, given in token_types.items():
            if given is not None or name in self.processor.model_input_names:
                batch[name] = self._spread(given, rows, documents, batch["input_ids"])
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
            images=images,
            text=[one["text"] for one in documents],
            add_special_tokens=specials.pop(),
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        made = dict(found)
        self._hold(made.pop("input_ids"), made.pop("attention_mask"), documents)
        return made

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
                    fix="Do not change images between preparation and training; if none changed, please report it.",
                )

    def _spread(self, given: Any, rows: Any, documents: Any, ids: torch.Tensor) -> torch.Tensor:
        """Token types in the batch's layout: (rows, width) int64; 0 for documents without images, and on padding."""
        import torch

        spread = torch.zeros_like(ids)
        number = 0
        starts = _starts(rows, self.flattened)
        for (document, length), (row, start) in zip(documents, starts, strict=True):
            if document["images"] and given is not None:
                spread[row, start : start + length] = given[number, :length]
                number += 1
        return spread


def _documents(row: Mapping[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """The documents of a row with their lengths and tokens."""
    ids = row["input_ids"]
    lengths = row.get("seq_lengths")
    lengths = [len(ids)] if lengths is None else [int(length) for length in lengths]
    given = row.get(DOCUMENTS)
    given = [{"text": None, "images": []}] * len(lengths) if given is None else given
    found, start = [], 0
    for document, length in zip(given, lengths, strict=True):
        found.append(({**document, "input_ids": ids[start : start + length]}, length))
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
