"""What a run does about documents that share a row: whether its batches hold any, the proof, and the way it found."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field, frozen

from sftcore.core.errors import ModelError
from sftcore.data.images.pictures import has_images
from sftcore.data.ranks import decided_by_first
from sftcore.documents.proof import Proof, check_labels, keep_documents_apart
from sftcore.documents.proof_images import LOOKED_AT, first_documents, prove_images
from sftcore.documents.ways import ways_for

if TYPE_CHECKING:
    from sftcore.core.types import AttentionBackend


@frozen
class Layout:
    """What a collator makes of rows: `shared` where documents stand in one row, `flattened` where all of them do."""

    shared: bool
    flattened: bool


def layout_of(collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]], *, packed: bool) -> Layout:
    """How this collator lays rows out, seen on two small ones.

    Raises:
        ModelError: rows are packed, and the collator gives no positions that restart at each document.
    """
    row: dict[str, Any] = {"input_ids": [1, 1, 1, 1], "labels": [1, 1, 1, 1]}
    rows = [{**row, "seq_lengths": [2, 2]} if packed else row] * 2
    try:
        batch: Mapping[str, Any] = collator([dict(one) for one in rows])
        flattened = len(batch["input_ids"]) == 1
        restarts = "attention_mask" not in batch and int((batch["position_ids"] == 0).sum()) == (4 if packed else 2)
    except Exception as error:  # a user's collator may want rows of its own shape, and raise anything
        if packed:
            raise ModelError(
                f"the collator cannot batch packed rows: {type(error).__name__}: {error}.",
                fix="Leave data_collator out, or set packing: false.",
            ) from error
        return Layout(False, False)
    if (packed or flattened) and not restarts:
        raise ModelError(
            "the collator puts documents into one row without position_ids that restart at each of them "
            "(or with an attention_mask, which hides the restarts), so that they would read each other.",
            fix="Give restarting position_ids and no attention_mask, or leave data_collator out.",
        )
    return Layout(packed or flattened, flattened)


@define
class SharedRows:
    """Keeps documents that share a row apart, by the way that the proof found; leaves other batches as they are."""

    proof: Proof | None = None
    _unchecked: set[str] = field(factory=lambda: {"train", "eval"})

    def prove(
        self, model: Any, backend: AttentionBackend | None, layout: Layout, *, max_length: int | None = None
    ) -> None:
        """Find the way for this model, if documents share rows.

        Raises:
            ModelError: there is none; with what leaked, and what to do.
        """
        if layout.shared:
            self.proof = keep_documents_apart(model, backend, flattened=layout.flattened, max_length=max_length)

    def prove_images(
        self, model: Any, backend: AttentionBackend | None, layout: Layout, collator: Any, dataset: Any
    ) -> None:
        """Hold that documents which share a row see their own images alone, with another way where the first fails.

        Raises:
            ModelError: with no way do they.
        """
        if self.proof is None or not has_images(dataset):
            return
        # of a stream, each process reads other rows, and has to make as many forward passes as the others
        documents = decided_by_first(lambda: first_documents(list(itertools.islice(dataset, LOOKED_AT))))
        failed: ModelError | None = None
        ways = (self.proof.way, *(way for way in ways_for(model, backend) if way.name != self.proof.way.name))
        for way in ways:
            try:
                gaps = prove_images(model, way, collator, documents)
                if failed is not None:
                    self.proof = keep_documents_apart(model, backend, flattened=layout.flattened, ways=[way])
            except ModelError as error:
                failed = failed or error
                continue
            if gaps is not None:
                self.proof = evolve(self.proof, notes=(*self.proof.notes, f"with images: {gaps}"))
            return
        assert failed is not None
        raise failed

    def __call__(self, batch: dict[str, Any], mode: str) -> dict[str, Any]:
        """The batch with what keeps its documents apart; the labels of the first batch of a mode are checked."""
        if self.proof is None or "position_ids" not in batch or "attention_mask" in batch:
            return batch
        if mode in self._unchecked:
            self._unchecked.discard(mode)
            check_labels(batch)
        return self.proof.way(batch)
