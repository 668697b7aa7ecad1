"""What the host knows of a batch that is still on the CPU, so that nobody has to ask the device for it later.

A GPU works behind the host. Whoever reads something back from it (how many tokens count, where documents begin,
whether a row is padded) makes the host wait until the device has caught up, and the device wait for the next order
after that. All of this is known when the batch is collated. It travels with the batch and is found again by its labels.

Shapes: B rows, T tokens, N supervised positions, D documents.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, frozen

from sftcore.core.types import IGNORED
from sftcore.data.account.in_batch import BatchRows, without_numbers

if TYPE_CHECKING:
    import torch


@frozen(eq=False)
class HostFacts:
    """Facts of one batch.

    positions: (N,) int64, row * T + column of each token whose next token counts.
    num_items: the sum of the weights of the tokens that count.
    padded: whether an attention mask hides a token.
    jumps: whether positions do not count up by one somewhere within a row, which transformers takes for a new document.
    edges: where documents begin, counted through all rows, and the end of the last; None where every row is one.
    boundaries: `edges` as (D + 1,) int32.
    rows: the documents that the loader's rows hold, where each is found in the batch as it was given.
    """

    positions: torch.Tensor
    num_items: float
    padded: bool
    jumps: bool = False
    edges: tuple[int, ...] | None = None
    boundaries: torch.Tensor | None = None
    rows: BatchRows | None = None

    @classmethod
    def of(cls, batch: Mapping[str, Any], rows: Sequence[Any] = ()) -> HostFacts | None:
        """Those of a batch on the CPU, which was made of these rows; None where it has no labels (B, T)."""
        import torch

        labels, weights, mask = batch.get("labels"), batch.get("weights"), batch.get("attention_mask")
        if not isinstance(labels, torch.Tensor) or labels.ndim != 2 or labels.device.type != "cpu":
            return None
        counted = labels[:, 1:] != IGNORED
        num_items = float(counted.sum() if weights is None else (weights[:, 1:] * counted).sum())
        padded = isinstance(mask, torch.Tensor) and not bool(mask.all())
        places = batch.get("position_ids")
        edges = None if mask is not None else _edges(places, labels)
        jumps = getattr(places, "shape", None) == labels.shape and bool((places.diff(dim=-1) != 1).any())  # type: ignore[union-attr]
        boundaries = None if edges is None else torch.tensor(edges, dtype=torch.int32)
        positions = supervised_positions(labels, weights)
        documents = BatchRows.of(batch, rows, positions)
        return cls(positions, num_items, padded, jumps, edges, boundaries, documents)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> HostFacts:
        """With tensors on a device; `non_blocking` copies them from pinned memory, which the host does not wait for."""

        def moved(tensor: torch.Tensor | None) -> torch.Tensor | None:
            if tensor is None:
                return None
            pinned = tensor.pin_memory() if non_blocking and device.type != "cpu" else tensor
            return pinned.to(device, non_blocking=non_blocking)

        rows = None if self.rows is None else evolve(self.rows, segments=moved(self.rows.segments))
        return evolve(self, positions=moved(self.positions), boundaries=moved(self.boundaries), rows=rows)


ABOUT = ("labels", "weights", "attention_mask", "position_ids")
"""What of a batch the facts are about."""


@frozen(eq=False)
class _Placed:
    """The facts of a batch with the tensors that they are about, as they were when it was placed."""

    facts: HostFacts
    tensors: Mapping[str, torch.Tensor]
    versions: Mapping[str, int]

    @classmethod
    def of(cls, facts: HostFacts, batch: Mapping[str, Any]) -> _Placed:
        tensors = {name: batch[name] for name in ABOUT if name in batch}
        return cls(facts, tensors, {name: one._version for name, one in tensors.items()})

    def still_hold(self, batch: Mapping[str, Any]) -> bool:
        """Whether a batch has these very tensors, and nobody has written into one since."""
        return all(batch.get(name) is self.tensors.get(name) for name in ABOUT) and all(
            one._version == self.versions[name] for name, one in self.tensors.items()
        )


class Batch(dict[str, Any]):
    """A batch with its facts. Moved to a device it is a plain dict again, whose facts `facts_of` finds."""

    facts: HostFacts | None = None

    def to(self, device: Any, non_blocking: bool = False) -> dict[str, Any]:
        """Called by accelerate, for each batch that it places."""
        import torch
        from accelerate.utils import send_to_device

        moved: dict[str, Any] = send_to_device(dict(self), device, non_blocking=non_blocking)
        if self.facts is not None:
            place(self.facts.to(torch.device(device), non_blocking=non_blocking), moved)
        return moved


def place(facts: HostFacts, batch: Mapping[str, Any]) -> None:
    """Have `facts_of` find these facts for a batch on the same device."""
    _by_labels()[batch["labels"]] = _Placed.of(facts, batch)
    if facts.boundaries is not None and facts.edges is not None:
        _edges_by_boundaries()[facts.boundaries] = facts.boundaries._version, facts.edges


@frozen
class WithFacts:
    """A collator whose batches carry their facts; batches of other kinds stay as they are, see `place_carried`.

    `by_row` is whether it is to be known where each row is in its batch.
    """

    collate: Callable[[list[Any]], Any]
    by_row: bool = False

    def __call__(self, rows: list[Any]) -> Any:
        found = self.collate(list(map(without_numbers, rows)))
        if type(found) is not dict:
            if self.by_row and isinstance(found, Mapping) and hasattr(found, "__dict__"):
                vars(found)[_CARRIED] = HostFacts.of(found, rows)
            return found
        batch = Batch(found)
        batch.facts = HostFacts.of(found, rows if self.by_row else ())
        return batch


_CARRIED = "_sftcore_facts"


def place_carried(batch: Mapping[str, Any]) -> None:
    """Have `facts_of` find the facts of a batch that is on its device, if it carries some as transformers' own do."""
    facts: HostFacts | None = getattr(batch, "__dict__", {}).pop(_CARRIED, None)
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if facts is not None and labels is not None and not labels.is_inference():
        _by_labels()[labels] = _Placed.of(facts.to(labels.device, non_blocking=True), batch)


def facts_of(batch: Mapping[str, Any]) -> HostFacts | None:
    """The facts of a batch on its device; None where it did not come from a loader of the run as it is."""
    labels = batch.get("labels")
    if labels is None or labels.is_inference():  # whose changes torch does not count
        return None
    placed: _Placed | None = _by_labels().get(labels)
    return placed.facts if placed is not None and placed.still_hold(batch) else None


def edges_of(boundaries: torch.Tensor) -> list[int]:
    """Document boundaries (D + 1,) as numbers: known from the collator, or read from the device once for all layers."""
    import torch

    if torch.compiler.is_compiling() or boundaries.is_inference():
        return list(boundaries.tolist())
    version, known = _edges_by_boundaries().get(boundaries, (None, ()))
    if version != boundaries._version:
        known = tuple(boundaries.tolist())
        _edges_by_boundaries()[boundaries] = boundaries._version, known
    return list(known)


def supervised_positions(labels_BT: torch.Tensor, weights_BT: torch.Tensor | None) -> torch.Tensor:
    """row * T + column of each token whose next token counts: (N,) int64. On a device the host waits for it."""
    import torch

    counts_BT = labels_BT[:, 1:] != IGNORED
    if weights_BT is not None:
        counts_BT = counts_BT & (weights_BT[:, 1:] > 0)
    return torch.nn.functional.pad(counts_BT, (0, 1)).flatten().nonzero().flatten()


def _edges(positions: Any, labels: torch.Tensor) -> tuple[int, ...] | None:
    """Where documents begin by their positions (B, T): at every 0, and at the start of every row."""
    if getattr(positions, "shape", None) != labels.shape:
        return None
    starts = positions.numpy() == 0
    starts[:, 0] = True
    return (*np.flatnonzero(starts).tolist(), starts.size)


@functools.cache
def _by_labels() -> Any:
    from torch.utils.weak import WeakTensorKeyDictionary

    return WeakTensorKeyDictionary()


@functools.cache
def _edges_by_boundaries() -> Any:
    from torch.utils.weak import WeakTensorKeyDictionary

    return WeakTensorKeyDictionary()
