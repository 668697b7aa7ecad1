"""Prove that documents that share a row see only their own images.

The first documents with images in the run's own rows are put into one row, as the run does it. The proof requires that
a document's logits stay bit-identical when the images of all others are replaced by noise of the same size, and that
they equal those of the document alone in the model's own forward pass, which computes positions and masks by itself.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftcore.core.errors import ModelError
from sftcore.data.images.pictures import DOCUMENTS
from sftcore.data.images.reference import size_of
from sftcore.data.ranks import first_reason
from sftcore.documents.proof import (
    FAILURES,
    PADDED,
    TOLERANCES,
    Gaps,
    coarsest,
    evaluation_mode,
    largest_gaps,
    logits_of,
    ordinary_token_ids,
)
from sftcore.documents.ways import Way
from sftcore.model.unwrap import causal_model
from sftcore.model.vision import FeatureDtypes

if TYPE_CHECKING:
    import torch

    Collate = Callable[[list[dict[str, Any]]], Mapping[str, Any]]

COUNT = 2
"""How many documents with images the proof uses."""
LOOKED_AT = 64
"""How many rows are searched for documents with images."""


def prove_images(model: Any, way: Way, collate: Collate, documents: Sequence[dict[str, Any]]) -> Gaps | None:
    """The gaps of these documents with images, as `first_documents` gives them, followed by text; None without any.

    All processes call it together, with the same documents.

    Raises:
        ModelError: a document sees another's images, or its own images differently than alone.
    """
    if not documents:
        return None
    import torch

    documents = [*documents, _text_document(model, len(documents[0]["input_ids"]))]

    try:
        with evaluation_mode(model), torch.no_grad():
            gaps = _measured(model, way, collate, documents)
        failure = gaps.failure()
    except FAILURES as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        failure = f"{type(error).__name__}: {error}".partition("\n")[0]
    if failure := first_reason(failure):
        raise ModelError(
            f"{type(model).__name__} does not keep documents with images that share a row apart: with "
            f"{way.summary}, {failure}.",
            fix=f"{PADDED}.",
        )
    return gaps


def first_documents(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Up to COUNT documents with images, each as a separate row."""
    found = (one for row in rows for one in _documents_of(row) if one[DOCUMENTS][0]["text"] is not None)
    return list(itertools.islice(found, COUNT))


def _text_document(model: Any, length: int) -> dict[str, Any]:
    """A document without images, which shows whether attention uses the image positions of another document."""
    known = ordinary_token_ids(causal_model(model).config)
    ids = [known[(7 * i) % len(known)] for i in range(length)]
    return {
        "input_ids": ids,
        "labels": ids,
        DOCUMENTS: [{"row": -1, "text": None, "special": False, "images": [], "media": []}],
    }


def _measured(model: Any, way: Way, collate: Collate, documents: Sequence[dict[str, Any]]) -> Gaps:
    shared = _shared(model, way, collate, documents)

    def measured() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        start = 0
        for number, document in enumerate(documents):
            span = slice(start, start + len(document["input_ids"]))
            start = span.stop
            others = [one if i == number else _with_noise(one) for i, one in enumerate(documents)]
            yield shared[span], _shared(model, way, collate, others)[span], _alone(model, collate, document)

    neighbours, alone, largest = largest_gaps(measured())
    return Gaps(neighbours, alone, 0.0, TOLERANCES[coarsest(model, shared)] * largest)


def _shared(model: Any, way: Way, collate: Collate, documents: Sequence[dict[str, Any]]) -> torch.Tensor:
    """The logits of the documents in one row: (tokens, vocabulary)."""
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
    kept = {name: value for name, value in batch.items() if name not in ("labels", "weights", "num_tokens")}
    moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in kept.items()}
    return FeatureDtypes(model)(moved)


def _documents_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    lengths = row.get("seq_lengths") or [len(row["input_ids"])]
    found, start = [], 0
    for length, document in zip(lengths, row[DOCUMENTS], strict=True):
        part = slice(start, start + length)
        found.append({"input_ids": row["input_ids"][part], "labels": row["labels"][part], DOCUMENTS: [document]})
        start += length
    return found


def _with_noise(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its images and other media replaced by noise."""
    inner = document[DOCUMENTS][0]
    images, media = map(_noise, inner["images"]), ({**one, "noise": True} for one in inner.get("media") or ())
    return {**document, DOCUMENTS: [{**inner, "images": list(images), "media": list(media)}]}


def _noise(source: Mapping[str, Any]) -> dict[str, Any]:
    from PIL import Image

    size = size_of(source, 1 << 40)
    buffer = io.BytesIO()
    Image.effect_noise(size, 100.0).convert("RGB").save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}
