"""Loss and gradients of documents, computed in the plain way and in the ways of a run.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from sftcore.core.types import IGNORED
from sftcore.documents.ways import document_starts

Rows = list[list[int]]
ROWS: Rows = [[5, 1, 12, 3], [9, 4, 7, 1]]
"""Lengths of the documents in each row; two of them are longer than the sliding window of 8."""


def ids_of(rows: Rows, vocabulary: int = 96, device: str = "cpu") -> list[list[torch.Tensor]]:
    """Random tokens for each document of each row, special ones left out."""
    generator = torch.Generator().manual_seed(3)
    return [[torch.randint(3, vocabulary, (n,), generator=generator).to(device) for n in row] for row in rows]


def alone(model: Any, ids: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One forward pass for each document, in a row of its own: nothing can be read across."""
    documents = [document for row in ids for document in row]
    total = sum(len(document) - 1 for document in documents)
    model.zero_grad()
    loss = sum(
        cross_entropy(_logits(model, input_ids=document[None])[0, :-1], document[1:], reduction="sum")
        for document in documents
        if len(document) > 1
    )
    return _found(model, loss / total)


def packed(model: Any, ids: list[list[torch.Tensor]], way: Any) -> dict[str, torch.Tensor]:
    """All documents in their rows, kept apart by `way`."""
    input_ids = torch.stack([torch.cat(row) for row in ids])
    positions = torch.stack([torch.cat([torch.arange(len(one)) for one in row]) for row in ids]).to(input_ids.device)
    labels = torch.where(document_starts(positions), IGNORED, input_ids)
    model.zero_grad()
    logits = _logits(model, **way({"input_ids": input_ids, "position_ids": positions}))
    return _found(model, _mean_loss(logits, labels))


def padded(model: Any, ids: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Each document a row, padded on the right."""
    documents = [document for row in ids for document in row]
    input_ids = pad_sequence(documents, batch_first=True)
    mask = pad_sequence([torch.ones_like(document) for document in documents], batch_first=True)
    model.zero_grad()
    logits = _logits(model, input_ids=input_ids, attention_mask=mask)
    return _found(model, _mean_loss(logits, torch.where(mask.bool(), input_ids, IGNORED)))


def assert_same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    """Loss and each gradient, as a part of the norm of what is wanted."""
    assert got.keys() == wanted.keys()
    # a parameter without any effect has a gradient of rounding errors
    floor = 1e-3 * max(float(one.norm()) for one in wanted.values())
    gaps = {name: float((got[name] - one).norm()) / max(float(one.norm()), floor) for name, one in wanted.items()}
    worst = max(gaps, key=lambda name: gaps[name])
    assert gaps[worst] <= tolerance, f"{worst}: {gaps[worst]:.2g}"


def _logits(model: Any, **batch: Any) -> torch.Tensor:
    logits: torch.Tensor = model(**batch, use_cache=False).logits
    return logits.float()


def _mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def _found(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()
    gradients = {name: one.grad.float().clone() for name, one in model.named_parameters() if one.grad is not None}
    return {"loss": loss.detach(), **gradients}
