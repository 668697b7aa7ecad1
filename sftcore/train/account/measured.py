"""The losses of rows by epoch, in memory and in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import define, field

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

FILE, MET = "row_losses.parquet", "rows_met.parquet"
"""In a checkpoint: what was measured before it, and of a stream the documents that were met."""
_GROWS = 1.5


@define(eq=False)
class Epoch:
    """Of each example in one epoch: sums (of loss times weight) and weights, float32; tokens that count, int32."""

    sums: Array = field(factory=lambda: np.zeros(0, np.float32))
    weights: Array = field(factory=lambda: np.zeros(0, np.float32))
    tokens: Array = field(factory=lambda: np.zeros(0, np.int32))

    def add(self, ids: Array, sums: Array, weights: Array, tokens: Array) -> None:
        """Add up: a row that was split, or that comes several times, is measured in pieces."""
        if len(ids) and int(ids.max()) >= len(self.sums):
            more = int(max(ids.max() + 1, _GROWS * len(self.sums))) - len(self.sums)
            self.sums, self.weights, self.tokens = (
                np.append(one, np.zeros(more, one.dtype)) for one in (self.sums, self.weights, self.tokens)
            )
        for mine, theirs in ((self.sums, sums), (self.weights, weights), (self.tokens, tokens)):
            np.add.at(mine, ids, theirs.astype(mine.dtype))


@define(eq=False)
class Measured:
    """What was measured in each epoch, counted from 1."""

    epochs: dict[int, Epoch] = field(factory=dict)

    def add(self, epoch: int, ids: Array, sums: Array, weights: Array, tokens: Array) -> None:
        """Add the losses of examples, by their numbers."""
        self.epochs.setdefault(epoch, Epoch()).add(ids, sums, weights, tokens)

    def columns(self, count: int) -> dict[str, Any]:
        """Of each of `count` examples: epochs list<int32>, loss list<float32> and loss_tokens list<int32>.

        The loss is the mean over the tokens that count, weighed by their weights.
        """
        import pyarrow as pa

        numbers = sorted(self.epochs)
        found = np.zeros((count, len(numbers)), bool)
        losses, tokens = np.zeros((count, len(numbers)), np.float32), np.zeros((count, len(numbers)), np.int32)
        for place, number in enumerate(numbers):
            one = self.epochs[number]
            size = min(count, len(one.sums))
            found[:size, place] = one.weights[:size] > 0
            with np.errstate(divide="ignore", invalid="ignore"):
                losses[:size, place] = one.sums[:size] / one.weights[:size]
            tokens[:size, place] = one.tokens[:size]
        offsets = pa.array(np.concatenate([[0], np.cumsum(found.sum(axis=1))]), pa.int32())
        every = np.broadcast_to(np.array(numbers, np.int32), found.shape)

        def listed(values: Array) -> pa.Array:
            return pa.ListArray.from_arrays(offsets, pa.array(values[found]))

        return {"epochs": listed(every), "loss": listed(losses), "loss_tokens": listed(tokens)}

    def write(self, folder: Path, met: Sequence[Sequence[int]] = ()) -> None:
        """Write what was measured into a checkpoint, and what was `met` of a stream; nothing where nothing was.

        Raises:
            OSError: what the disk said.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = []
        for number, one in self.epochs.items():
            ids = np.flatnonzero(one.tokens)
            columns = {"id": ids, "sum": one.sums[ids], "weight": one.weights[ids], "tokens": one.tokens[ids]}
            tables.append(pa.table({"epoch": np.full(len(ids), number, np.int32), **columns}))
        if tables:
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.concat_tables(tables), folder / FILE, compression="zstd")
        if tables and met:
            pq.write_table(pa.table({"met": pa.array(met, pa.list_(pa.int64()))}), folder / MET, compression="zstd")

    @classmethod
    def read(cls, folder: Path) -> Measured | None:
        """What a checkpoint holds; None where it holds none that can be read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(folder / FILE)
            columns = {name: table[name].to_numpy() for name in ("epoch", "id", "sum", "weight", "tokens")}
        except (OSError, pa.ArrowException, KeyError):
            return None
        found = cls()
        for number in np.unique(columns["epoch"]).tolist():
            own = columns["epoch"] == number
            found.add(number, *(columns[name][own] for name in ("id", "sum", "weight", "tokens")))
        return found


def read_met(folder: Path) -> list[list[int]]:
    """What a checkpoint says was met of a stream, in that order; empty where it says nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found: list[list[int]] = pq.read_table(folder / MET)["met"].to_pylist()
    except (OSError, pa.ArrowException, KeyError):
        return []
    return found
