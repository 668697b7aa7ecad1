"""The token rows of a batch, laid end to end, so that no Python object is made for each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from attrs import frozen

from sftcore.core.types import IGNORED, TokenizedRow

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

Truncation: TypeAlias = Literal["keep_start", "keep_end"]


@frozen(eq=False)
class TokenColumns:
    """Rows of tokens; row i is the slice `offsets[i]:offsets[i + 1]` of the other arrays.

    input_ids, labels: (tokens,) int32; a label is -100 if its token is not supervised.
    weights: (tokens,) float32, 1 in rows without weights of their own.
    offsets: (rows + 1,) int64. weighted: (rows,) bool, whether a row has weights of its own.
    """

    input_ids: Array
    labels: Array
    weights: Array
    offsets: Array
    weighted: Array

    @classmethod
    def of(cls, rows: Sequence[TokenizedRow]) -> TokenColumns:
        """Build the columns from single rows.

        >>> TokenColumns.of([TokenizedRow([1, 2], [-100, 2]), TokenizedRow([3])]).labels.tolist()
        [-100, 2, 3]
        """
        ids = [np.asarray(row.input_ids, np.int32) for row in rows]
        labels = [one if row.labels is None else row.labels for one, row in zip(ids, rows, strict=True)]
        weighted = np.array([row.weights is not None for row in rows], bool)
        weights = [np.ones(len(row.input_ids)) if row.weights is None else row.weights for row in rows]
        return cls(
            _joined(ids, np.int32),
            _joined(labels, np.int32),
            _joined(weights, np.float32),
            offsets_of([len(one) for one in ids]),
            weighted,
        )

    @classmethod
    def from_arrow(cls, table: pa.Table) -> TokenColumns:
        """The columns of a table that `to_arrow` filled, the weights of which may be left out."""
        import pyarrow.compute as pc

        lengths = pc.list_value_length(table["input_ids"]).to_numpy()
        ids, labels = (pc.list_flatten(table[name]).to_numpy() for name in ("input_ids", "labels"))
        weights, weighted = np.ones(len(ids), np.float32), np.zeros(len(lengths), bool)
        if "weights" in table.column_names:
            weighted = pc.is_valid(table["weights"]).to_numpy().astype(bool)
            weights[np.repeat(weighted, lengths)] = pc.list_flatten(table["weights"]).to_numpy()
        return cls(ids, labels, weights, offsets_of(lengths), weighted)

    @property
    def lengths(self) -> Array:
        """Tokens in each row: (rows,) int64."""
        return np.diff(self.offsets)

    def row(self, index: int) -> TokenizedRow:
        """One row as plain lists."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        weights = self.weights[part].tolist() if self.weighted[index] else None
        return TokenizedRow(self.input_ids[part].tolist(), self.labels[part].tolist(), weights)

    def num_supervised(self) -> Array:
        """How many tokens of each row the model is trained to predict: (rows,) int64.

        The first token of a row is never counted, because there is nothing before it to predict it from.
        """
        counts = (self.labels != IGNORED) & (self.weights > 0)
        counts[self.offsets[:-1][self.lengths > 0]] = False
        sums = np.concatenate([[0], np.cumsum(counts)])
        counted: Array = sums[self.offsets[1:]] - sums[self.offsets[:-1]]
        return counted

    def truncated(self, max_length: int | None, truncation: Truncation = "keep_start") -> TokenColumns:
        """Each row, cut to its first or last `max_length` tokens if it is longer.

        >>> TokenColumns.of([TokenizedRow([1, 2, 3], [-100, 2, 3])]).truncated(2, "keep_end").input_ids.tolist()
        [2, 3]
        """
        lengths = self.lengths
        if max_length is None or not (lengths > max_length).any():
            return self
        kept = np.minimum(lengths, max_length)
        starts = self.offsets[:-1] + (lengths - kept if truncation == "keep_end" else 0)
        parts = [slice(start, start + length) for start, length in zip(starts.tolist(), kept.tolist(), strict=True)]

        def gathered(values: Array) -> Array:
            return np.concatenate([values[part] for part in parts])

        return TokenColumns(
            gathered(self.input_ids),
            gathered(self.labels),
            gathered(self.weights),
            offsets_of(kept),
            self.weighted,
        )

    def split(self, max_length: int) -> tuple[TokenColumns, Sequence[int]]:
        """The rows with longer ones in pieces of at most `max_length` tokens, and which row each piece is of.

        >>> pieces, rows = TokenColumns.of([TokenizedRow([1, 2, 3]), TokenizedRow([4])]).split(2)
        >>> [pieces.row(i).input_ids for i in range(3)], rows
        ([[1, 2], [3], [4]], [0, 0, 1])
        """
        counts = np.maximum(-(-self.lengths // max_length), 1)
        rows = np.repeat(np.arange(len(counts)), counts)
        firsts = (np.arange(len(rows)) - offsets_of(counts)[rows]) * max_length
        offsets = np.append(self.offsets[rows] + firsts, self.offsets[-1])
        return TokenColumns(self.input_ids, self.labels, self.weights, offsets, self.weighted[rows]), rows.tolist()

    def to_arrow(self) -> dict[str, pa.Array]:
        """Arrow columns: input_ids and labels list<int32>; weights list<float32>, null for rows without weights."""
        import pyarrow as pa

        offsets = pa.array(self.offsets, pa.int32())
        weights = pa.nulls(len(self.weighted), pa.list_(pa.float32()))
        if self.weighted.any():
            weights = pa.ListArray.from_arrays(offsets, pa.array(self.weights), mask=pa.array(~self.weighted))
        return {
            "input_ids": pa.ListArray.from_arrays(offsets, pa.array(self.input_ids)),
            "labels": pa.ListArray.from_arrays(offsets, pa.array(self.labels)),
            "weights": weights,
        }


def without_empty_weights(rows: pa.Table) -> pa.Table:
    """The rows without the column `weights` if it is null in all of them."""
    if "weights" in rows.column_names and rows.column("weights").null_count == len(rows):
        return rows.drop_columns(["weights"])
    return rows


def offsets_of(lengths: Any) -> Array:
    """Where each row begins, and where the last one ends: (rows + 1,) int64."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _joined(parts: Sequence[Any], dtype: Any) -> Array:
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(part, dtype) for part in parts)])
