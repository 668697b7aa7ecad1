"""What a run does about documents that share a row: the proof, and the way that it found."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field

from sftcore.core.errors import ModelError
from sftcore.data.images.pictures import has_images
from sftcore.data.ranks import decided_by_first
from sftcore.documents.layouts import Layout
from sftcore.documents.proof import Gaps, Proof, check_labels, keep_documents_apart
from sftcore.documents.proof_images import LOOKED_AT, first_documents, prove_images
from sftcore.documents.ways import Way, ways_for

if TYPE_CHECKING:
    from sftcore.core.types import AttentionBackend


@define
class SharedRows:
    """Keeps documents that share a row apart, by the way that the proof found; leaves other batches as they are."""

    proof: Proof | None = None
    _unchecked: set[str] = field(factory=lambda: {"train", "eval"})

    def prove(
        self,
        model: Any,
        backend: AttentionBackend | None,
        layout: Layout,
        *,
        max_length: int | None = None,
        ways: Sequence[Way] | None = None,
    ) -> None:
        """Find the way for this model, if documents share rows; `ways` are tried instead of all.

        Raises:
            ModelError: there is none; with what leaked, and what to do.
        """
        if layout.shared:
            self.proof = keep_documents_apart(
                model, backend, flattened=layout.flattened, max_length=max_length, ways=ways
            )

    def assume(self, way: Way) -> None:
        """Keep documents apart in this way without a proof or a look at labels, for batches that have no values."""
        self.proof = Proof(way, Gaps(0.0, 0.0, 0.0, 0.0), ())
        self._unchecked.clear()

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
