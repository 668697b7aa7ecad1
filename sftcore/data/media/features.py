"""What the processor makes of documents with media, when their batch is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sftcore.core.errors import DataError, RowError
from sftcore.data.images.reference import MAX_PIXELS, open_image
from sftcore.data.media.modality import Modality, Reference

if TYPE_CHECKING:
    import torch

_PADDED = ("pixel_values", "pixel_attention_mask", "input_features", "input_features_mask", "feature_attention_mask")
"""Tensors in which transformers' processors fill up what is shorter with zeros, and models skip that."""


_PER_TOKEN = ("token_type_ids", "mm_token_type_ids")


def media_features(
    processor: Any,
    documents: Sequence[Mapping[str, Any]],
    modalities: Mapping[str, Modality],
    max_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:
    """What a processor makes of these documents' images and media, each document by itself, in their order.

    Args:
        processor: the model's processor.
        documents: entries of the column `documents` that have images or media, each with its `input_ids`.
        modalities: how media are opened, by their names.
        max_pixels: the most pixels that an image may have.

    Returns:
        Tensors joined along their first dimension, and lists; token types are (documents, width), 0 on padding.

    Raises:
        RowError: an image or medium cannot be decoded.
        DataError: the processor makes other tokens of a text than it did when the rows were prepared, or the media of
            these documents do not fit into one batch.
    """
    made = [_made(processor, one, modalities, max_pixels) for one in documents]
    names = dict.fromkeys(name for one in made for name in one)
    return {name: _joined(name, [one[name] for one in made if name in one], documents) for name in names}


def _made(
    processor: Any, document: Mapping[str, Any], modalities: Mapping[str, Modality], max_pixels: int
) -> dict[str, Any]:
    given: dict[str, Any] = {}
    try:
        if document["images"]:
            given["images"] = [[open_image(source, max_pixels) for source in document["images"]]]
        for name in dict.fromkeys(one["modality"] for one in document.get("media") or ()):
            modality = modalities[name]
            mine = [one for one in document["media"] if one["modality"] == name]
            given |= {
                modality.argument: modality.given([_opened(modality, one) for one in mine]),
                **modality.arguments(mine),
            }
    except RowError as error:
        raise RowError(error.what, fix=error.fix, where=f"row {document['row']}", row=document["row"]) from error
    special = bool(document["special"])
    found = dict(processor(text=[document["text"]], add_special_tokens=special, return_tensors="pt", **given))
    _hold(found.pop("input_ids")[0], document)
    found.pop("attention_mask", None)
    for name in _PER_TOKEN:
        if name in found:
            found[name] = found[name][0]
    return found


def _opened(modality: Modality, reference: Reference) -> Any:
    return modality.noise(reference) if reference.get("noise") else modality.open(reference)


def _hold(ids: torch.Tensor, document: Mapping[str, Any]) -> None:
    """Hold that the processor made the tokens that the row was prepared with, which may have been cut behind them."""
    got, wanted = ids.numpy(), np.asarray(document["input_ids"])
    if len(got) < len(wanted) or not (got[: len(wanted)] == wanted).all():
        raise DataError(
            f"the processor makes {len(got)} tokens of a text with {len(document['media'] or ())} media, and the row "
            f"was prepared with {len(wanted)}.",
            where=f"row {document['row']}",
            fix="If a file was changed since, prepare the rows anew: dataset_cache: false. "
            "If none was, please report it.",
        )


def _joined(name: str, values: Sequence[Any], documents: Sequence[Mapping[str, Any]]) -> Any:
    import torch

    if name in _PER_TOKEN:
        return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)
    if isinstance(values[0], (list, tuple)):
        return [each for value in values for each in value]
    shapes = [value.shape[1:] for value in values]
    if any(shape != shapes[0] for shape in shapes):
        if name not in _PADDED or len({len(shape) for shape in shapes}) > 1:
            rows = ", ".join(str(document["row"]) for document in documents)
            raise DataError(
                f"the media of the rows {rows} do not fit into one batch: {name} has the shapes "
                f"{' and '.join(str(tuple(shape)) for shape in dict.fromkeys(shapes))}.",
                fix="Give videos the same number of frames (format: {vlm: {num_frames: 8}}), or set "
                "per_device_train_batch_size: 1.",
            )
        longest = [max(sizes) for sizes in zip(*shapes, strict=True)]
        values = [_filled(value, longest) for value in values]
    return torch.cat(list(values))


def _filled(value: torch.Tensor, longest: Sequence[int]) -> torch.Tensor:
    import torch

    ends = [end - size for end, size in zip(longest, value.shape[1:], strict=True)]
    return torch.nn.functional.pad(value, [each for end in reversed(ends) for each in (0, end)])
