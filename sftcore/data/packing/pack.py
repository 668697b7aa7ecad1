"""Decides which piece of which document goes into which block of fixed length, from their lengths alone.

- `bfd`: best-fit decreasing (Johnson 1974): longest first, each into the fullest block that has room for it. Documents
  longer than a block lose their end.
- `bfd_split`: documents longer than a block are first split into pieces, each of which is a document of its own.
- `wrapped`: documents one after the other, split where a block ends. Each piece is a document of its own.

Three documents of 5, 3 and 2 tokens in blocks of 4:

    bfd         aaaa | bbb. | cc..            one token of a is lost
    bfd_split   aaaa | bbba | cc..            the last token of a is a document of its own
    wrapped     aaaa | abbb | cc..
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from sftcore.core.errors import OptionTypeError, nearest
from sftcore.core.types import PACKING_STRATEGIES
from sftcore.data.account.in_batch import DOCUMENTS
from sftcore.data.columns import offsets_of

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

PER_DOCUMENT = ("documents", DOCUMENTS)
"""Columns with one entry for each document, whatever its length (see sftcore.data.images.pictures)."""
WINDOW = 4096
"""How many blocks are written at a time."""


@frozen(eq=False)
class Packing:
    """Pieces of documents in the order of their blocks.

    documents, starts, lengths: (pieces,) int64; each piece's document, its first token there, and its length.
    blocks: (blocks + 1,) int64; block i holds the pieces `blocks[i]:blocks[i + 1]`.
    """

    capacity: int
    documents: Array
    starts: Array
    lengths: Array
    blocks: Array

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return len(self.blocks) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens in all blocks."""
        return int(self.lengths.sum())

    @property
    def num_split(self) -> int:
        """How many documents were split into several pieces."""
        return int((np.bincount(self.documents) > 1).sum()) if len(self.documents) else 0

    @property
    def fill(self) -> float:
        """The share of the blocks that holds tokens, from 0.0 to 1.0."""
        return self.num_tokens / (self.num_blocks * self.capacity) if self.num_blocks else 0.0


def pack(lengths: Any, capacity: int, strategy: str = "bfd") -> Packing:
    """Pack documents of these lengths into blocks of `capacity` tokens; empty documents are left out.

    >>> packing = pack([5, 3, 2], 4, "bfd_split")
    >>> packing.documents.tolist(), packing.starts.tolist(), packing.lengths.tolist(), packing.blocks.tolist()
    ([0, 1, 0, 2], [0, 0, 4, 0], [4, 3, 1, 2], [0, 1, 3, 4])

    Raises:
        OptionTypeError: the strategy is not known, or the capacity is below 1.
    """
    if strategy not in PACKING_STRATEGIES:
        raise OptionTypeError(
            f'packing_strategy "{strategy}" is not known.{nearest(strategy, PACKING_STRATEGIES)}',
            fix=f"Use one of: {', '.join(PACKING_STRATEGIES)}.",
        )
    if capacity < 1:
        raise OptionTypeError(
            f"a block of {capacity} tokens cannot hold a document.", fix="Set max_length to at least 2."
        )
    lengths = np.asarray(lengths, np.int64)
    if strategy == "wrapped":
        return _wrapped(lengths, capacity)
    documents = np.flatnonzero(lengths)
    if strategy == "bfd":
        pieces = documents, np.zeros_like(documents), np.minimum(lengths[documents], capacity)
    else:
        pieces = _cut(documents, lengths[documents], capacity)
    return _best_fit_decreasing(*pieces, capacity)


def packed(table: pa.Table, packing: Packing) -> Iterator[pa.Table]:
    """The blocks of `packing` as tables of at most `WINDOW` rows.

    Every column of `table` is a list column. It has one entry for each token, or if its name is in `PER_DOCUMENT`, one
    for each document. The column `seq_lengths` (list<int32>, the lengths of the pieces in each block) is added.
    """
    import pyarrow as pa

    columns = {name: _combined(table.column(name)) for name in table.column_names}
    offsets = {name: offsets_of(column.value_lengths()) for name, column in columns.items()}
    for first in range(0, packing.num_blocks, WINDOW):
        blocks = packing.blocks[first : first + WINDOW + 1]
        part = slice(int(blocks[0]), int(blocks[-1]))
        documents, lengths = packing.documents[part], packing.lengths[part]
        ends = np.cumsum(lengths)
        block_offsets = pa.array(np.concatenate([[0], ends])[blocks - blocks[0]], pa.int32())
        first_pieces = pa.array(blocks - blocks[0], pa.int32())
        arrays = {"seq_lengths": pa.ListArray.from_arrays(first_pieces, pa.array(lengths, pa.int32()))}
        for name, column in columns.items():
            values = column.flatten()
            if name in PER_DOCUMENT:
                arrays[name] = pa.ListArray.from_arrays(first_pieces, values.take(pa.array(documents)))
                continue
            tokens = values.to_numpy(zero_copy_only=False)
            starts = offsets[name][documents] + packing.starts[part]
            pieces = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
            taken = np.concatenate([tokens[start:stop] for start, stop in pieces])
            arrays[name] = pa.ListArray.from_arrays(block_offsets, pa.array(taken, values.type))
        yield pa.table(arrays)


def _best_fit_decreasing(documents: Array, starts: Array, lengths: Array, capacity: int) -> Packing:
    order = np.argsort(-lengths, kind="stable")
    # Bit r of `rooms` is set if some block has room for exactly r more tokens; `open_blocks[r]` are those blocks
    rooms = 0
    open_blocks: list[list[int]] = [[] for _ in range(capacity + 1)]
    placed = np.empty(len(order), np.int64)
    num_blocks = 0
    for at, length in enumerate(lengths[order].tolist()):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            stack = open_blocks[room]
            block = stack.pop()
            if not stack:
                rooms ^= 1 << room
        else:
            room, block = capacity, num_blocks
            num_blocks += 1
        placed[at] = block
        left = room - length
        if left:
            open_blocks[left].append(block)
            rooms |= 1 << left
    by_block = np.argsort(placed, kind="stable")
    chosen = order[by_block]
    counts = np.bincount(placed, minlength=num_blocks)
    return Packing(capacity, documents[chosen], starts[chosen], lengths[chosen], offsets_of(counts))


def _cut(documents: Array, lengths: Array, capacity: int) -> tuple[Array, Array, Array]:
    """Split each document into pieces of at most `capacity` tokens."""
    counts = -(-lengths // capacity)
    which = np.repeat(np.arange(len(documents)), counts)
    starts = (np.arange(len(which)) - offsets_of(counts)[which]) * capacity
    return documents[which], starts, np.minimum(lengths[which] - starts, capacity)


def _wrapped(lengths: Array, capacity: int) -> Packing:
    offsets = offsets_of(lengths)
    borders = np.union1d(offsets, np.arange(0, offsets[-1] + 1, capacity))
    firsts = borders[:-1]
    documents = np.searchsorted(offsets, firsts, side="right") - 1
    counts = np.bincount(firsts // capacity) if len(firsts) else np.zeros(0, np.int64)
    return Packing(capacity, documents, firsts - offsets[documents], np.diff(borders), offsets_of(counts))


def _combined(column: pa.ChunkedArray) -> pa.ListArray:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
