"""What became of each row of one data set, beside the counts of its ledger."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, frozen

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

FILES = ("rows.arrow", "documents.arrow")
"""The files of an entry of the cache that hold them: the examples, and the documents of each block."""
FACTS = ("tokens_in", "tokens_cut", "supervised", "digest")
"""What is told of each document of a stream, behind its source, its row, and which of that row's examples it is."""
COLUMNS = ("row", "tokens_in", "tokens_cut", "supervised", "dropped", "digest")


@frozen(eq=False)
class Outcomes:
    """The examples of a set, kept or not, and which of them each prepared row holds.

    examples: one row for each example in the order of the data: row (its number there), tokens_in, tokens_cut,
    supervised, digest (of its tokens, 0 for those that have images), all int64, and dropped (why, or null); None of a
    mixture, whose sources have them. documents: for each block the kept examples (of a mixture: its rows) that it
    holds, list<int64>; None where rows are not packed.
    """

    examples: pa.Table | None = None
    documents: pa.ChunkedArray | None = None

    @classmethod
    def of(cls, outcomes: pa.Table) -> Outcomes:
        """From a table of outcomes from `Pipeline.encode`."""
        return cls(outcomes.select([f"_{name}" for name in COLUMNS]).rename_columns(list(COLUMNS)))

    def packed(self, documents: pa.ChunkedArray) -> Outcomes:
        """The same where the kept examples were packed into blocks."""
        return evolve(self, documents=documents)

    def write(self, folder: Path) -> None:
        """Write the files of an entry of the cache.

        Raises:
            OSError: what the disk said.
        """
        import pyarrow as pa

        documents = None if self.documents is None else pa.table({"documents": self.documents})
        for name, table in zip(FILES, (self.examples, documents), strict=True):
            table = pa.table({}) if table is None else table
            with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)

    @classmethod
    def read(cls, folder: Path) -> Outcomes:
        """Map the files of an entry of the cache."""
        import pyarrow as pa

        examples, documents = (pa.ipc.open_stream(pa.memory_map(str(folder / name))).read_all() for name in FILES)
        return cls(
            examples if examples.num_columns else None, documents["documents"] if documents.num_columns else None
        )

    def kept(self) -> Array:
        """The places among `examples` of those that were kept: (kept,) int64."""
        import pyarrow.compute as pc

        assert self.examples is not None
        found: Array = np.flatnonzero(pc.is_null(self.examples["dropped"]).to_numpy())
        return found


def parts_of(rows: Any) -> Any:
    """Of examples in the order of the data, which of its row each is: (rows,) int32 from 0.

    >>> parts_of(np.array([4, 4, 5, 6, 6, 6])).tolist()
    [0, 1, 0, 0, 1, 2]
    """
    rows = np.asarray(rows)
    places = np.arange(len(rows))
    begins = np.ones(len(rows), bool)
    begins[1:] = rows[1:] != rows[:-1]
    return (places - np.maximum.accumulate(np.where(begins, places, 0))).astype(np.int32)


def digests_of(ids: Array, offsets: Array, distinct: Iterable[bool]) -> Array:
    """A digest of the tokens of each row, by which equal rows are found: (rows,) int64.

    Args:
        ids: the tokens of all rows, (tokens,) int32.
        offsets: where each row begins, and the end of the last.
        distinct: whether a row is more than its tokens, as with images; its digest is 0, as that of no tokens.
    """
    from xxhash import xxh3_64_intdigest

    data = np.ascontiguousarray(ids).data.cast("B")
    ends = (offsets * ids.itemsize).tolist()
    found = [
        0 if more or start == stop else xxh3_64_intdigest(data[start:stop]) - (1 << 63)
        for start, stop, more in zip(ends, ends[1:], distinct, strict=False)
    ]
    return np.array(found, np.int64)
