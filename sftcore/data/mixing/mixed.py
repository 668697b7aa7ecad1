"""A mixture of map-style sets: its rows by their index, its ledger, and its packing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from sftcore.data.columns import TokenColumns
from sftcore.data.ledger import Dealt, Ledger
from sftcore.data.mixing.order import Order
from sftcore.data.packing.blocks import PackingPlan
from sftcore.data.store.cache import Key, digest_of, find_or_make, wrapped
from sftcore.data.store.mapstyle import BATCH, Sink, pack_sink

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from numpy.typing import NDArray


@frozen
class Mixed:
    """Which rows a mixture has.

    names, sizes: the sets that it was made of, and their prepared rows. rows: for each row of the mixture its index
    among those of all sets in turn, (rows,) int64; None where they are all there, one set after another.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    order: Order
    rows: NDArray[np.int64] | None = field(eq=False)

    @classmethod
    def of(cls, names: Sequence[str], sizes: Sequence[int], order: Order, shuffle_seed: int | None) -> Mixed:
        """The mixture of sets of these sizes, shuffled where there is a seed for it."""
        rows = order.rows(sizes)
        if shuffle_seed is not None:
            rows = np.arange(sum(sizes)) if rows is None else rows
            rows = np.random.default_rng(shuffle_seed).permutation(rows)
        return cls(tuple(names), tuple(sizes), order, rows)

    def __len__(self) -> int:
        return sum(self.sizes) if self.rows is None else len(self.rows)

    def origin(self, row: int) -> tuple[str, int]:
        """The set of a row of the mixture, and its number there.

        >>> Mixed(("a", "b"), (2, 3), Order(), None).origin(3)
        ('b', 1)
        """
        index = row if self.rows is None else int(self.rows[row])
        source = int(np.searchsorted(np.cumsum(self.sizes), index, side="right"))
        return self.names[source], index - sum(self.sizes[:source])

    def dealt(self) -> tuple[Dealt, ...]:
        """How many rows of each set there are."""
        counts = list(self.sizes)
        if self.rows is not None:
            of_row = np.searchsorted(np.cumsum(self.sizes), self.rows, side="right")
            counts = np.bincount(of_row, minlength=len(self.sizes)).tolist()
        shares = self.order.shares or [None] * len(counts)
        last = self.order.end(self.sizes)[1] if self.order.shares else None
        facts = zip(self.names, counts, self.sizes, shares, strict=True)
        return tuple(Dealt(*one, place == last) for place, one in enumerate(facts))


def concatenated(parts: Sequence[Dataset]) -> Dataset:
    """The rows of prepared sets in turn, still in the files that they are in; what one lacks (weights) is null."""
    from datasets import concatenate_datasets

    return concatenate_datasets(list(parts))


def mixed_ledger(parts: Sequence[Dataset], mixed: Mixed, name: str, ledgers: Sequence[Ledger]) -> Ledger:
    """The ledger of a mixture of prepared sets, given theirs."""
    if mixed.order.shares:
        counts = np.concatenate([_tokens_and_supervised(part) for part in parts], axis=1)
        tokens, supervised = (int(found) for found in counts[:, mixed.rows].sum(axis=1))
        how = f"mixed by weight (stop: {mixed.order.stop})"
    else:
        tokens, supervised = (sum(getattr(one, f"tokens_{kind}") for one in ledgers) for kind in ("kept", "supervised"))
        how = "one after another"
    rows = len(mixed)
    return Ledger(name, how, rows, rows, 0, tokens, tokens, 0, 0, supervised, one_each=True, sources=mixed.dealt())


def packed_mixture(
    rows: Dataset,
    ledger: Ledger,
    packing: PackingPlan,
    parents: Sequence[Key | None],
    mixed: Mixed,
    shared: Path | None,
) -> tuple[Dataset, Ledger, str]:
    """The blocks of a mixture's rows, from the cache where its sources are there too.

    Args:
        parents: the keys of its sources, None for one that is not cached.
        shared: a folder through which processes share sets that the cache does not keep.
    """

    def make(folder: Path | None) -> tuple[pa.Table, Ledger]:
        sink = Sink(folder, "rows")
        for table in rows.with_format("arrow").iter(BATCH):
            sink.write(table)
        return pack_sink(sink, packing, ledger)

    order = "in turn" if mixed.rows is None else digest_of(mixed.rows.tobytes())
    key = {
        "the sources": digest_of(*(json.dumps(one, sort_keys=True).encode() for one in parents)),
        "the order of the rows": f"{order}, {list(mixed.sizes)}, {list(mixed.names)}",
        "packing": f"{packing.strategy}, {packing.capacity}, shuffle seed {packing.shuffle_seed}",
    }
    if all(one is not None for one in parents):
        return find_or_make(key, make)
    if shared is not None:
        found, made, _ = find_or_make({**key, "set": ledger.name}, make, folder=shared)
        return found, made, "packed by one process for all processes of this machine, and not kept"
    table, made = make(None)
    return wrapped(table), made, "packed, and not cached"


def _tokens_and_supervised(part: Dataset) -> NDArray[np.int64]:
    """How many tokens each row of a prepared set has, and how many of them count for the loss: (2, rows) int64."""
    found = []
    for table in part.with_format("arrow").iter(BATCH):
        columns = TokenColumns.from_arrow(table)
        found.append(np.stack([columns.lengths, columns.num_supervised()]))
    return np.concatenate(found, axis=1)
