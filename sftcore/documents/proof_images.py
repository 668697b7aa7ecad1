"""The proof that documents with images, which share a row, see their own images alone.

The first documents of the run's own rows are laid into one row as the run does it. Replacing the images of all others
by noise of the same size leaves a document's logits as they are, to the last bit, and they equal those of the document
alone in the model's own forward, which computes positions and masks of images by itself.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftcore.core.errors import ModelError
from sftcore.data.images.pictures import DOCUMENTS
from sftcore.data.images.reference import size_of
from sftcore.documents.proof import (
    FAILURES,
    PADDED,
    TOLERANCES,
    Gaps,
    coarsest,
    logits_of,
    plain_words,
    quiet,
    worst,
)
from sftcore.documents.ways import Way
from sftcore.model.unwrap import causal_model

if TYPE_CHECKING:
    import torch

    Collate = Callable[[list[dict[str, Any]]], Mapping[str, Any]]

COUNT = 2
"""Documents with images in the row."""
LOOKED_AT = 64
"""Rows among which they are looked for."""


def prove_images(model: Any, way: Way, collate: Collate, rows: Sequence[Mapping[str, Any]]) -> Gaps | None:
    """Gaps of the first documents with images among these prepared rows, and of words behind them; None without images.

    Raises:
        ModelError: a document sees the images of another, or its own otherwise than alone.
    """
    documents = first_documents(rows)
    if not documents:
        return None
    import torch

    documents.append(_words(model, len(documents[0]["input_ids"])))

    try:
        with quiet(model), torch.no_grad():
            gaps = _measured(model, way, collate, documents)
        failure = gaps.failure()
    except FAILURES as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        failure = f"{type(error).__name__}: {error}".partition("\n")[0]
    if failure:
        raise ModelError(
            f"documents with images that share a row are not kept apart in {type(model).__name__}: with "
            f"{way.summary}, {failure}.",
            fix=f"{PADDED}.",
        )
    return gaps


def first_documents(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Up to COUNT documents with images, each as a row of its own."""
    found = (document for row in rows for document in _parted(row) if document[DOCUMENTS][0]["images"])
    return list(itertools.islice(found, COUNT))


def _words(model: Any, length: int) -> dict[str, Any]:
    """A document without images: in it, attention that looks images up in another document's places shows."""
    known = plain_words(causal_model(model).config)
    ids = [known[(7 * i) % len(known)] for i in range(length)]
    return {"input_ids": ids, "labels": ids, DOCUMENTS: [{"row": -1, "text": None, "special": False, "images": []}]}


def _measured(model: Any, way: Way, collate: Collate, documents: Sequence[dict[str, Any]]) -> Gaps:
    neighbours = alone = largest = 0.0
    wanted = _shared(model, way, collate, documents)
    start = 0
    for number, document in enumerate(documents):
        span = slice(start, start + len(document["input_ids"]))
        start = span.stop
        others = [one if i == number else _with_noise(one) for i, one in enumerate(documents)]
        got = _shared(model, way, collate, others)
        neighbours = worst(neighbours, got[span], wanted[span])
        reference = _alone(model, collate, document)
        alone = worst(alone, wanted[span], reference)
        largest = max(largest, float(reference.abs().max()))
    coarse = coarsest(model, wanted)
    return Gaps(neighbours, alone, 0.0, TOLERANCES[coarse] * largest)


def _shared(model: Any, way: Way, collate: Collate, documents: Sequence[dict[str, Any]]) -> torch.Tensor:
    """Logits of the documents in one row: (tokens, vocabulary)."""
    row = {
        "input_ids": [token for one in documents for token in one["input_ids"]],
        "labels": [label for one in documents for label in one["labels"]],
        "seq_lengths": [len(one["input_ids"]) for one in documents],
        DOCUMENTS: [one[DOCUMENTS][0] for one in documents],
    }
    return logits_of(model, way(_inputs(model, collate, row)))[0, : len(row["input_ids"])]


def _alone(model: Any, collate: Collate, document: dict[str, Any]) -> torch.Tensor:
    batch = _inputs(model, collate, document)
    width = len(document["input_ids"])
    batch.pop("position_ids", None)
    batch["attention_mask"] = (batch["input_ids"] == batch["input_ids"]).long()
    batch["attention_mask"][:, width:] = 0
    return logits_of(model, batch)[0, :width]


def _inputs(model: Any, collate: Collate, row: dict[str, Any]) -> dict[str, Any]:
    device = model.get_input_embeddings().weight.device
    batch = collate([dict(row)])
    dropped = ("labels", "weights", "num_tokens")
    return {
        name: value.to(device) if hasattr(value, "to") else value
        for name, value in batch.items()
        if name not in dropped
    }


def _parted(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    lengths = row.get("seq_lengths") or [len(row["input_ids"])]
    found, start = [], 0
    for length, document in zip(lengths, row[DOCUMENTS], strict=True):
        part = slice(start, start + length)
        found.append({"input_ids": row["input_ids"][part], "labels": row["labels"][part], DOCUMENTS: [document]})
        start += length
    return found


def _with_noise(document: dict[str, Any]) -> dict[str, Any]:
    """The document with noise in the place of its images."""
    inner = document[DOCUMENTS][0]
    return {**document, DOCUMENTS: [{**inner, "images": [_noise(image) for image in inner["images"]]}]}


def _noise(source: Mapping[str, Any]) -> dict[str, Any]:
    from PIL import Image

    size = size_of(source, 1 << 40)
    buffer = io.BytesIO()
    Image.effect_noise(size, 100.0).convert("RGB").save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}
