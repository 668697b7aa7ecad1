"""Where the rows of a loader are in a batch, known on the host, so that a loss can be added up row by row on a device.

Shapes: B rows, T tokens of the batch; N supervised positions; D documents of the loader's rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

if TYPE_CHECKING:
    import torch

    Array = np.ndarray[Any, Any]

DOCUMENTS = "_sftcore_documents"
"""A column of the rows of a stream: what is known of each document in the row, a list of `Seen`."""


def without_numbers(row: Any) -> Any:
    """A row as collators are to see it."""
    if not isinstance(row, Mapping) or DOCUMENTS not in row:
        return row
    return {name: value for name, value in row.items() if name != DOCUMENTS}


@frozen(eq=False)
class BatchRows:
    """The documents of one batch, in the order of the loader's rows.

    segments: (N,) int64, which document each supervised position is of; None once it was used. counts: how many
    documents each row has. lengths, supervised: (D,) int64, the tokens of each and those that count. weights: (D,)
    float64, the sum of their weights. told: what a stream says of each, or None.
    """

    segments: torch.Tensor | None
    counts: tuple[int, ...]
    lengths: Array
    supervised: Array
    weights: Array
    told: list[Any] | None = None

    @classmethod
    def of(cls, batch: Mapping[str, Any], rows: Sequence[Any], positions: torch.Tensor) -> BatchRows | None:
        """Those of a batch that was made of these rows; None where a row is not in it as it was given.

        A collator of the user's may put rows in another order, leave some out, or change their tokens.
        """
        import torch

        if not rows or not all(isinstance(row, Mapping) and row.get("input_ids") is not None for row in rows):
            return None
        starts = _starts(batch["input_ids"], [row["input_ids"] for row in rows])
        if starts is None:
            return None
        per_row = [_documents_of(row) for row in rows]
        lengths = np.concatenate([np.asarray(one, np.int64) for one in per_row])
        begins = np.concatenate(
            [start + np.cumsum([0, *one[:-1]]) for start, one in zip(starts, per_row, strict=True)]
        ).astype(np.int64)
        at = positions.numpy() + 1  # the token that is predicted
        found = np.searchsorted(begins, at, side="right") - 1
        weights = batch.get("weights")
        weights_N = None if weights is None else weights.flatten().numpy()[at].astype(np.float64)
        told = [one for row in rows for one in row[DOCUMENTS]] if DOCUMENTS in rows[0] else None
        return cls(
            torch.from_numpy(found),
            tuple(map(len, per_row)),
            lengths,
            np.bincount(found, minlength=len(lengths)),
            np.bincount(found, weights_N, minlength=len(lengths)).astype(np.float64),
            told,
        )


def _documents_of(row: Mapping[str, Any]) -> Sequence[int]:
    given = row.get("seq_lengths")
    return [len(row["input_ids"])] if given is None else [int(length) for length in given]


def _starts(ids: Any, rows: Sequence[Sequence[int]]) -> list[int] | None:
    """Where each row begins in the flattened batch; None where one is not where it is expected."""
    num_rows, width = ids.shape
    lengths = [len(row) for row in rows]
    if num_rows == len(rows):
        for padded in (0, 1):  # on the right, or on the left
            starts = [place * width + padded * (width - length) for place, length in enumerate(lengths)]
            if _are_there(ids, rows, starts):
                return starts
    if num_rows == 1:
        starts = [int(start) for start in np.cumsum([0, *lengths[:-1]])]
        if _are_there(ids, rows, starts):
            return starts
    return None


def _are_there(ids: Any, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> bool:
    flat = ids.flatten().numpy()
    return all(
        start >= 0 and start + len(row) <= len(flat) and _equal(flat[start : start + len(row)], row)
        for row, start in zip(rows, starts, strict=True)
    )


def _equal(part: Array, row: Sequence[int]) -> bool:
    # lists are compared without an array made of each, which would take longer than all else here
    return part.tolist() == row if isinstance(row, list) else np.array_equal(part, np.asarray(row))
