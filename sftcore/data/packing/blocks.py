"""Packs token rows into blocks, for whole data sets and for windows of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, frozen

from sftcore.core.types import IGNORED
from sftcore.data.columns import offsets_of, without_empty_weights
from sftcore.data.packing.pack import Packing, pack, packed

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]


@frozen
class PackingPlan:
    """How to pack: into blocks of `capacity` tokens, after shuffling the documents by `shuffle_seed`."""

    strategy: str
    capacity: int
    shuffle_seed: int | None = None


def blocks_of(rows: pa.Table, plan: PackingPlan) -> tuple[Packing, Iterator[pa.Table]]:
    """The packing of token rows (input_ids, labels, maybe weights), and tables of its blocks with `seq_lengths`."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(rows.column("input_ids")).to_numpy()
    order = np.arange(len(lengths))
    if plan.shuffle_seed is not None:
        np.random.default_rng(plan.shuffle_seed).shuffle(order)
    packing = pack(lengths[order], plan.capacity, plan.strategy)
    packing = evolve(packing, documents=order[packing.documents])
    return packing, map(_with_masked_starts, packed(_with_all_weights(rows), packing))


def documents_of(packing: Packing) -> pa.ChunkedArray:
    """Which rows each block holds, a row that was split in each of its pieces: list<int64>."""
    import pyarrow as pa

    # offsets of more than 2^31 pieces would not fit into a list
    found = pa.LargeListArray.from_arrays(pa.array(packing.blocks, pa.int64()), pa.array(packing.documents, pa.int64()))
    return pa.chunked_array([found])


def num_supervised(blocks: pa.Table) -> int:
    """How many tokens of these blocks the loss is computed on."""
    counts = _values(blocks, "labels") != IGNORED
    if "weights" in blocks.column_names:
        counts = counts & (_values(blocks, "weights") > 0)
    return int(counts.sum())


def _with_masked_starts(blocks: pa.Table) -> pa.Table:
    """Mask the first label of every document, so that the document before is not trained to predict it."""
    import pyarrow as pa

    labels = _values(blocks, "labels").copy()
    labels[offsets_of(_values(blocks, "seq_lengths"))[:-1]] = IGNORED
    lengths = blocks.column("labels").combine_chunks().value_lengths().to_numpy()
    masked = pa.ListArray.from_arrays(pa.array(offsets_of(lengths), pa.int32()), pa.array(labels))
    return blocks.set_column(blocks.column_names.index("labels"), "labels", masked)


def _with_all_weights(rows: pa.Table) -> pa.Table:
    """Give weights of 1 to rows without weights, since a block may hold rows of both kinds.

    If no row has weights, the column is left out.
    """
    import pyarrow as pa

    rows = without_empty_weights(rows)
    if "weights" not in rows.column_names or not rows.column("weights").null_count:
        return rows
    filled = [
        [1.0] * len(ids) if weights is None else weights
        for ids, weights in zip(rows.column("input_ids"), rows.column("weights").to_pylist(), strict=True)
    ]
    return rows.set_column(rows.column_names.index("weights"), "weights", pa.array(filled, pa.list_(pa.float32())))


def _values(table: pa.Table, name: str) -> Array:
    values: Array = table.column(name).combine_chunks().flatten().to_numpy()
    return values
