"""Prepares streams: token rows are made as rows are read, and packed one window at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from sftcore.core.errors import DataError, said_by
from sftcore.data.account.in_batch import DOCUMENTS
from sftcore.data.account.outcomes import FACTS, parts_of
from sftcore.data.columns import without_empty_weights
from sftcore.data.packing.blocks import PackingPlan, blocks_of
from sftcore.data.pipeline import Pipeline
from sftcore.data.ranks import ROW_NUMBER, Numbering, Rank, shard_source
from sftcore.data.store.beside import columns_of_rows
from sftcore.data.store.counts import StreamCounts
from sftcore.data.store.mapstyle import BATCH, kept_rows, refuse_long
from sftcore.data.suggestions import TRIED

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset


def prepare_stream(
    dataset: IterableDataset,
    pipeline: Pipeline,
    *,
    packing: PackingPlan | None = None,
    rank: Rank | None = None,
    counts: StreamCounts | None = None,
    beside: Sequence[str] = (),
    numbered: int | None = None,
    accounted: int | None = None,
) -> IterableDataset:
    """A stream of token rows or blocks, without rows that have no supervised tokens, which `counts` counts.

    With a `rank`, only its rows are prepared, so that the ranks share the work. The raw columns `beside` are kept where
    rows are not packed. Where it is `numbered`, as the n-th of several streams that are read in turn, token rows hold
    their place among those of all ranks in ROW_NUMBER. Where it is `accounted` for, as the n-th of several, what is
    known of each document is in DOCUMENTS, if its rows are numbered alike by all who read them.

    With packing, one window of rows is packed at a time: as many rows as a block has tokens, but at least 1,000.
    A window does not depend on the windows before it, so a stream resumes at its own position.

    Raises (while it is read):
        RowError: a row cannot be used; names its number.
    """
    columns = columns_of(dataset)
    source, reader = dataset, rank or Rank()
    dataset, rank = shard_source(source, reader)
    numbering = None if numbered is None else Numbering.of(source, reader, rank, numbered)
    if source._distributed is not None or rank.count != reader.count:
        accounted = None  # each reads files of its own, and numbers their rows from 0

    prepared = _Prepared(pipeline, packing, rank, counts, tuple(beside), numbering, accounted)
    if pipeline.expander is not None and dataset.features is not None:
        dataset = dataset.decode(False)  # images stay references
    size = BATCH if packing is None else max(BATCH, packing.capacity) * rank.count
    return dataset.map(prepared, batched=True, batch_size=size, with_indices=True, remove_columns=columns)


@frozen
class _Prepared:
    """From raw rows and their numbers to token rows or blocks, as a mapping of lists; it can be sent to a worker."""

    pipeline: Pipeline
    packing: PackingPlan | None
    rank: Rank
    counts: StreamCounts | None
    beside: tuple[str, ...]
    numbering: Numbering | None
    accounted: int | None

    def __reduce__(self) -> tuple[Any, ...]:
        """As map-style sets are sent to processes: a format may give a function that `pickle` does not know."""
        import dill

        try:
            return _sent, (dill.dumps(attrs.asdict(self, recurse=False)),)
        except Exception as error:  # what a plugin or a user handed over may raise anything when it is pickled
            raise DataError(
                f"{self.pipeline.reader.named} cannot be sent to worker processes: {said_by(error)}.",
                fix="Set dataloader_num_workers: 0, or open in each process what cannot be pickled.",
            ) from error

    def __call__(self, batch: dict[str, list[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
        import pyarrow as pa

        own = self.rank.own(numbers)
        taken = {name: [values[place] for place in own] for name, values in batch.items()}
        outcome = self.pipeline(taken, [numbers[place] for place in own])
        refuse_long(outcome, self.pipeline)
        if self.counts is not None:
            self.counts.add(outcome)
        others = {}
        if self.beside:
            others = columns_of_rows(taken, self.beside, [numbers[place] for place in own], outcome)
        if self.numbering is not None:
            of_rows = [self.numbering(number) for number in outcome.column("_row").to_pylist()]
            outcome = outcome.append_column(ROW_NUMBER, pa.array(of_rows, pa.int64()))
        if self.accounted is not None:
            outcome = outcome.append_column(DOCUMENTS, _told(outcome, self.accounted))
        rows = kept_rows(outcome)
        if self.packing is not None and len(rows):
            rows = pa.concat_tables(blocks_of(rows, self.packing)[1])
        return {"weights": [None] * len(rows), **rows.to_pydict(), **others}


def _sent(given: bytes) -> _Prepared:
    import dill

    return _Prepared(**dill.loads(given))


def _told(outcome: pa.Table, source: int) -> pa.Array:
    """Of each example a list of one document: source, row, part, tokens, tokens cut, supervised tokens, digest."""
    import numpy as np
    import pyarrow as pa

    rows, *facts = (outcome.column(f"_{name}").to_numpy() for name in ("row", *FACTS))
    found = np.stack([np.full(len(rows), source), rows, parts_of(rows), *facts], axis=1).astype(np.int64)
    inner = pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), found.shape[1]).cast(pa.list_(pa.int64()))
    return pa.ListArray.from_arrays(pa.array(np.arange(len(rows) + 1), pa.int32()), inner)


def packed_stream(stream: IterableDataset, packing: PackingPlan) -> IterableDataset:
    """The blocks of a stream of token rows, packed a window at a time as in `prepare_stream`."""
    return stream.map(partial(_packed, packing=packing), batched=True, batch_size=max(BATCH, packing.capacity))


def _packed(batch: dict[str, list[Any]], *, packing: PackingPlan) -> dict[str, list[Any]]:
    import pyarrow as pa

    rows = without_empty_weights(pa.table(batch))
    blocks = pa.concat_tables(blocks_of(rows, packing)[1])
    return {"weights": [None] * len(blocks), **blocks.to_pydict()}


def columns_of(dataset: Dataset | IterableDataset) -> list[str]:
    """Column names, even of a stream whose features are not known."""
    if dataset.column_names is not None:
        return list(dataset.column_names)
    first = next(iter(dataset), None)
    if first is None:
        raise DataError("the data set has no rows.")
    return list(first)


def first_rows(dataset: Dataset | IterableDataset) -> list[dict[str, Any]]:
    """The first rows, to try what reads them."""
    return list(itertools.islice(dataset, TRIED))
