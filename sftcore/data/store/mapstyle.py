"""Prepares map-style data sets: kept rows are written as they come, and packed once all lengths are known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field

from sftcore.core.errors import DataError, said_by
from sftcore.data.columns import without_empty_weights
from sftcore.data.images.reference import holds_only_images, with_references
from sftcore.data.ledger import Ledger
from sftcore.data.packing.blocks import PackingPlan, blocks_of, documents_of, num_supervised
from sftcore.data.pipeline import OUTCOME, Pipeline, rows_of
from sftcore.data.rules.long_rows import TOO_LONG, several_refused
from sftcore.data.store.cache import OTHERWISE
from sftcore.display.stages import stage
from sftcore.util.disk import writing

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

BATCH = 1000
"""How many rows are tokenized in one call."""
_OUTCOME = [f"_{column}" for column in OUTCOME]


@define
class Sink:
    """Collects prepared tables in an Arrow file in `folder`, or in memory if `folder` is None."""

    folder: Path | None
    name: str
    _tables: list[pa.Table] = field(factory=list)
    _writer: Any = None

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        if self.folder is None:
            self._tables.append(table)
            return
        with writing("prepared rows", self.folder, otherwise=OTHERWISE):
            if self._writer is None:
                import pyarrow as pa

                self._writer = pa.ipc.new_stream(str(self.path), table.schema)
            self._writer.write_table(table)

    @property
    def path(self) -> Path:
        """The file."""
        assert self.folder is not None
        return self.folder / f"{self.name}.arrow"

    def table(self) -> pa.Table:
        """All rows; those of a file are memory-mapped, not read."""
        import pyarrow as pa

        if self.folder is None:
            return pa.concat_tables(self._tables)
        with writing("prepared rows", self.folder, otherwise=OTHERWISE):
            self._writer.close()
        return pa.ipc.open_stream(pa.memory_map(str(self.path))).read_all()


def build(
    dataset: Dataset,
    pipeline: Pipeline,
    *,
    name: str,
    packing: PackingPlan | None = None,
    num_proc: int | None = None,
    folder: Path | None = None,
) -> tuple[pa.Table, Ledger]:
    """The token rows or blocks of a data set, and its ledger.

    Args:
        pipeline: what is done with each row; its `max_length` truncates rows before they are packed.
        name: the name of the set in errors and reports.
        num_proc: how many processes share the work.
        folder: the folder of the resulting file, or None to keep the rows in memory.

    Raises:
        RowError: a row cannot be used; names its number.
        DataError: no row is left.
    """
    import pyarrow as pa

    if len(dataset) == 0:
        raise DataError("the data set has no rows.", where=name)
    sink = Sink(folder, "rows" if packing else "data")
    outcomes = []
    for table in _prepared(dataset, pipeline, num_proc, name):
        outcomes.append(table.select(_OUTCOME))
        sink.write(kept_rows(table))
    found = pa.concat_tables(outcomes)
    refuse_long(found, pipeline)
    ledger = Ledger.of(found, name=name, format=pipeline.reader.label)
    if not ledger.rows_kept:
        raise DataError(
            f"no row is left: {'; '.join(ledger.lines()[1:])}.",
            where=name,
            fix="Check what the rows hold and which part is supervised; raise max_length where it cuts them.",
        )
    if packing is None:
        return without_empty_weights(sink.table()), ledger
    return pack_sink(sink, packing, ledger)


def pack_sink(sink: Sink, packing: PackingPlan, ledger: Ledger) -> tuple[pa.Table, Ledger]:
    """The blocks of the token rows in `sink`, which is removed, and their ledger with what packing gave."""
    packed, blocks = blocks_of(sink.table(), packing)
    whole = Sink(sink.folder, "data")
    supervised = 0
    with stage(f"Packing {ledger.name}", packed.num_blocks, "blocks") as advance:
        for table in blocks:
            supervised += num_supervised(table)
            whole.write(table)
            advance(len(table))
    if sink.folder is not None:
        sink.path.unlink()
    return whole.table(), ledger.packed(packed, packing.strategy, supervised, documents_of(packed))


def refuse_long(outcomes: pa.Table, pipeline: Pipeline) -> None:
    """Refuse rows that are longer than the run allows, where it refuses them.

    Raises:
        RowError: with how many they are, at the first of them.
    """
    if pipeline.long_rows.choice != "refuse":
        return
    import pyarrow.compute as pc

    long = outcomes.filter(pc.equal(outcomes.column("_dropped"), TOO_LONG))
    if len(long):
        numbers = long.column("_row").to_pylist()
        first = pipeline.long_rows.fault(None, long.column("_tokens_in")[0].as_py())
        assert first is not None
        raise several_refused(numbers, first.at(pipeline.reader.where, numbers[0]))


def kept_rows(table: pa.Table) -> pa.Table:
    """The token rows in the result of `Pipeline.encode`, without dropped rows and without the outcome columns."""
    import pyarrow.compute as pc

    dropped = table.column("_dropped")
    rows = table.drop_columns(_OUTCOME)
    return rows if dropped.null_count == len(dropped) else rows.filter(pc.is_null(dropped))


def _prepared(dataset: Dataset, pipeline: Pipeline, num_proc: int | None, name: str) -> Iterator[pa.Table]:
    """The results of the pipeline for all rows in order, a batch at a time."""
    plain = as_stored(dataset)
    if num_proc is None or num_proc < 2:
        yield from _in_this_process(plain, pipeline, name)
        return
    _refuse_unpicklable(pipeline, num_proc, name)
    with _one_tokenizer_thread():
        rows = plain.map(
            pipeline,
            batched=True,
            batch_size=BATCH,
            with_indices=True,
            remove_columns=dataset.column_names,
            num_proc=min(num_proc, len(dataset)),
            load_from_cache_file=False,
            # datasets would hash the whole pipeline, which our own cache makes unnecessary
            new_fingerprint=os.urandom(8).hex(),
            desc=f"Preparing {name}",
        )
    yield from rows.with_format("arrow").iter(BATCH)


def _refuse_unpicklable(pipeline: Pipeline, num_proc: int, name: str) -> None:
    """Refuse a format that cannot be sent to other processes, by the library that `datasets` sends it with."""
    import dill

    try:
        dill.dumps(pipeline)
    except Exception as error:  # what a plugin or a user handed over may raise anything when it is pickled
        raise DataError(
            f"{pipeline.reader.named} cannot be sent to {num_proc} processes: {said_by(error)}.",
            where=name,
            fix="Set dataset_num_proc: null, or open in each process what cannot be pickled.",
        ) from error


def _in_this_process(dataset: Dataset, pipeline: Pipeline, name: str) -> Iterator[pa.Table]:
    """Tokenize and look at images in another thread, while this one reads the next batch and encodes the last."""
    with (
        stage(f"Preparing {name}", len(dataset)) as advance,
        ThreadPoolExecutor(1) as pool,
    ):
        before: tuple[Any, int] | None = None
        for start in range(0, len(dataset), BATCH):
            numbers = range(start, min(start + BATCH, len(dataset)))
            contents = pipeline.read(rows_of(dataset[start : start + BATCH]), numbers)
            completed = pool.submit(pipeline.completed, contents)
            if before is not None:
                yield pipeline.encode(*before[0].result())
                advance(before[1])
            before = completed, len(numbers)
        if before is not None:
            yield pipeline.encode(*before[0].result())
            advance(before[1])


@contextmanager
def _one_tokenizer_thread() -> Iterator[None]:
    """Forked workers cannot share the tokenizer's thread pool, which warns unless parallelism is set explicitly."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]


def as_stored(dataset: Dataset) -> Dataset:
    """The set with its rows as Arrow holds them, unless a column has to be decoded; images stay references then too."""
    return with_references(dataset) if _needs_decoding(dataset) else dataset.with_format("arrow")


def _needs_decoding(dataset: Dataset) -> bool:
    """Whether a column must be decoded (such as JSON values), except for images, whose references are enough."""
    flagged = getattr(dataset.features, "_column_requires_decoding", {})
    return any(needed and not holds_only_images(dataset.features[name]) for name, needed in flagged.items())
