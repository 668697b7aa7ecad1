"""Loads raw data sets for the command line from local files or the hub, and traces errors to their line."""

from __future__ import annotations

import glob
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore.config.data.section import SampleBy, SourceSection
from sftcore.core.errors import DataError, RowError
from sftcore.data.format import RowReader, choose_format, reader_for
from sftcore.data.rules.numbers import numbered, numbers_in
from sftcore.data.source.as_written import is_as_written
from sftcore.data.source.files import Files, first_rows, local_files, scan
from sftcore.data.source.made import dataset_of, is_uniform, stream_of
from sftcore.data.source.opened import needs_python
from sftcore.data.source.parquet import rows_at_once
from sftcore.data.source.tokenizers import has_chat_template

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from sftcore.config.setup import Setup

SAMPLE = 1000
"""How many rows of a local file are read with the format before anything heavy is imported."""

_SHARDS = 64
"""The number of parts of a streamed saved data set, which the processes share between them."""


@frozen
class Source:
    """A data entry of a recipe: local files, or a hub id. `reader` reads its raw rows, if they could be sampled."""

    label: str
    files: Files | None
    reader: RowReader | None = None


def inspect(
    source: str | Sequence[str],
    setup: Setup,
    *,
    limit: int = SAMPLE,
    keep: Sequence[str] | None = None,
    sample_by: SampleBy | None = None,
    window: range | None = None,
) -> Source:
    """Read the first rows of local files with the run's format, using only the standard library.

    Args:
        source: files, a folder or a hub id.
        setup: whose format reads the rows.
        limit: how many rows are read.
        keep: the columns that are kept; None is all of them.
        sample_by: what a row of a text file is.
        window: the rows that are read of all; None is all of them.

    Raises:
        DataError, RowError: a file is missing, empty or broken, or the format does not read its columns or a row.
    """
    files = local_files(source, sample_by)
    if files is None:
        return Source(str(source), None)
    sample = first_rows(files, limit if window is None else min(limit, len(window)), window.start if window else 0)
    if keep is not None:
        sample = [(place, {name: row[name] for name in keep if name in row}) for place, row in sample]
    if not sample:
        if files.builder in ("parquet", "arrow"):
            return Source(files.label, files)
        if window is not None and first_rows(files, 1):
            raise DataError(f"there is no row {window.start}, with which the slice begins.", where=files.label)
        raise DataError("the file holds no rows.", where=files.label, fix="Give a file with at least one row.")
    columns = list(dict.fromkeys(key for _, row in sample for key in row))
    bound = choose_format(
        setup,
        columns,
        files.label,
        rows=lambda: [row for _, row in sample],
        has_template=has_chat_template(setup.plan),
    )
    reader = reader_for(bound, columns, files.label, setup.plugins, setup.plan.settings)
    _read_all(reader, sample)
    return Source(files.label, files, reader)


def load(
    source: Source, data: SourceSection, split: str, *, streaming: bool = False, window: range | None = None
) -> Dataset | IterableDataset:
    """The rows of a source; with `streaming` they are read when needed. `data` says the configuration of a hub's.

    `window` is for the stream of a saved data set alone: its parts are made of these rows.

    Raises:
        DataError: they cannot be read; for local files, the error names the line or row.
    """
    import datasets

    if source.files is None:
        try:
            return datasets.load_dataset(source.label, data.config, split=split, streaming=streaming)
        except Exception as error:  # the hub's client and the builders raise a dozen types
            raise DataError(
                f"the data set cannot be loaded: {str(error).partition(chr(10))[0]}",
                where=source.label,
                fix="Check its name, config and split. Without a network, give a local file.",
            ) from error
    files = source.files
    if files.builder == "arrow":
        saved = datasets.load_from_disk(str(files.paths[0]))
        saved = saved if window is None else saved.select(numbers_in(window, len(saved)))
        return saved.to_iterable_dataset(num_shards=min(_SHARDS, len(saved))) if streaming else saved
    if files.builder != "parquet":
        sample = [row for _, row in first_rows(files, SAMPLE)]
        if streaming:
            return stream_of(files, list(dict.fromkeys(key for row in sample for key in row)))
        if files.builder != "json" or any(map(needs_python, files.paths)) or not is_uniform(sample):
            return dataset_of(files)
    try:
        # datasets would read * and [ in a name as a pattern
        paths = [glob.escape(str(path.resolve())) for path in files.paths]
        few = rows_at_once(files.paths) if files.builder == "parquet" else None
        given = {} if few is None else {"batch_size": few}
        found = datasets.load_dataset(files.builder, data_files=paths, split="train", streaming=streaming, **given)
    except Exception as error:  # the builder may raise anything, and the user needs the line
        if files.builder == "json":
            return dataset_of(files)  # rows that differ behind the first ones; what is broken is named with its line
        raise explained(error, source) from error
    return found if files.builder != "json" or is_as_written(found, sample) else dataset_of(files)


def explained(error: Exception, source: Source) -> DataError:
    """The error that `datasets` raised for local files.

    Raises:
        DataError: the same error with its line, if the line can be found.
    """
    if source.files is not None:
        rows = scan(source.files)
        if source.reader is None:
            deque(rows, maxlen=0)
        else:
            _read_all(source.reader, rows)
    reason = str(error.__cause__ or error).partition("\n")[0].rstrip(".")
    untold = "does not have a datasets dtype" in reason
    fix = "Write that column as a text, a list or a struct, or the rows as JSON lines." if untold else ""
    return DataError(f"the file cannot be read: {reason}.", where=source.label, fix=fix)


def split_off(dataset: Dataset, size: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split rows into training rows and a share, or number, of evaluation rows; they keep their numbers in the file.

    Raises:
        DataError: there are too few.
    """
    count, name = len(dataset), "eval_rows" if isinstance(size, int) else "eval_fraction"
    if count < 2:
        raise DataError(f"{count} row cannot be split into training and evaluation.", fix=f"Drop {name}.")
    if size >= count:
        raise DataError(f"eval_rows is {size:,}, and there are {count:,} rows.", fix="Hold fewer back.")
    train, held_back = split_rows(count, size, seed)
    return numbered(dataset, train), numbered(dataset, held_back)


def split_rows(count: int, size: float, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """The numbers from 0 to `count`, split into those to train on and a share, or number, to evaluate on."""
    import datasets

    parts = datasets.Dataset.from_dict({"row": range(count)}).train_test_split(test_size=size, seed=seed)
    return parts["train"]["row"][:], parts["test"]["row"][:]


def paths_of(*sources: Source | None) -> list[Path]:
    """All local files of these sources."""
    return [path for source in sources if source and source.files for path in source.files.paths if path.is_file()]


def _read_all(reader: RowReader, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Read rows with the format.

    Raises:
        RowError: the format refuses a row; names its location.
    """
    with reader.watched():
        for number, (place, row) in enumerate(rows):
            try:
                reader.read(row, number)
            except RowError as error:
                error.where = place
                raise
