"""Refuses batches in which the images or prompts of one row would change what another row learns.

Models with cross-attention (Mllama) look for images in the rows of a batch, and fill up rows that have fewer; models
that turn images into codes (Emu3) fill up smaller images, and what is filled up changes the codes; PaliGemma's prompts
are seen as a whole. Most models do none of this.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from sftcore.core.errors import ConflictError
from sftcore.data.images.pictures import has_images, images_in, numbers_of_images
from sftcore.data.images.processors import fills_up
from sftcore.data.images.reference import size_of
from sftcore.model.vision import parts_with_codes

_PADDED = "Set packing, eval_packing and padding_free to false."
_ALONE = "Set per_device_{}_batch_size: 1 (and gradient_accumulation_steps for more rows a step)"


def refuse_image_batches(
    collator: Any, model: Any, sizes: Mapping[str, int], train: Any, evaluated: Any, *, packed: bool
) -> None:
    """Refuse rows of which several would share a batch, and may not.

    Args:
        collator: that makes the batches. Its attribute `images_by_row` names a processor whose model looks for images
            in the rows of a batch, `sees_prompts_whole` one whose model lets the tokens of prompts see each other, and
            its `processor` is asked what it does with images of several sizes.
        model: which the batches are for.
        sizes: rows of a batch of "train" and of "eval".
        train, evaluated: prepared sets; `evaluated` may be a mapping of several.
        packed: whether documents share rows.

    Raises:
        ConflictError: with the processor, and what to set.
    """
    sets = _sets(train, evaluated)
    if name := getattr(collator, "images_by_row", ""):
        _refuse_by_row(name, sizes, sets, packed=packed)
    if packed and (name := getattr(collator, "sees_prompts_whole", "")):
        raise ConflictError(
            f"{name} tells prompts from answers by token types, and its model lets the tokens of prompts in a row see "
            "each other in both directions, also those of another document, so documents cannot share a row.",
            fix=_PADDED,
        )
    processor = getattr(collator, "processor", None)
    if processor is not None and parts_with_codes(model) and fills_up(processor):
        _refuse_filled_up(type(processor).__name__, sizes, sets, packed=packed)


def _sets(train: Any, evaluated: Any) -> list[tuple[str, Any]]:
    every = evaluated.values() if isinstance(evaluated, Mapping) else [evaluated]
    found = [("train", train), *(("eval", one) for one in every)]
    return [(kind, one) for kind, one in found if hasattr(one, "column_names") and has_images(one)]


def _refuse_by_row(name: str, sizes: Mapping[str, int], sets: list[tuple[str, Any]], *, packed: bool) -> None:
    model = f"the model of {name} looks for images in the rows of a batch"
    if packed and any(hasattr(one, "data") for _, one in sets):
        raise ConflictError(
            f"{model}, so documents with images cannot share a row.",
            fix=_PADDED,
        )
    for kind, one in sets:
        if sizes[kind] < 2 or not hasattr(one, "data"):  # the collator looks at the rows of a stream
            continue
        numbers = numbers_of_images(one)
        if len(numbers) < 2:
            continue
        if 0 in numbers:
            what = "rows with and without images cannot share a batch"
        else:
            what = (
                f"rows with {_listed(numbers)} images cannot share a batch: words before an image would see what "
                "shorter rows are filled up with"
            )
        raise ConflictError(
            f"{model}, so {what}.", fix=f"{_ALONE.format(kind)}, or give all rows the same number of images."
        )


def _refuse_filled_up(name: str, sizes: Mapping[str, int], sets: list[tuple[str, Any]], *, packed: bool) -> None:
    for kind, one in sets:
        if sizes[kind] < 2 and not packed:
            continue
        found = _sizes_in(one)
        if found is not None and len(found) < 2:
            continue
        shown = "" if found is None else f" ({' and '.join('{} x {}'.format(*size) for size in found)} pixels)"
        raise ConflictError(
            f"{name} fills up the smaller images of a batch to the largest, and its model makes codes of what is "
            f"filled up too: rows with images of several sizes{shown} would change one another.",
            fix="Give all images one size (format: {vlm: {image_size: [512, 512]}}), or set "
            f"per_device_{kind}_batch_size: 1, and packing and padding_free to false.",
        )


def _sizes_in(dataset: Any) -> list[tuple[int, int]] | None:
    """The first two sizes that images have, or one if all have it; None of a stream, which is not read for this."""
    if not hasattr(dataset, "data"):
        return None
    found: dict[tuple[int, int], None] = {}
    for image in images_in(dataset):
        found[size_of(image, sys.maxsize)] = None
        if len(found) > 1:
            break
    return sorted(found)


def _listed(numbers: list[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
