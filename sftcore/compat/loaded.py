"""Loads one data set of TRL's mixtures: local tables, texts and JSON are read as `sftcore train` reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftcore.config.data.section import SourceSection
from sftcore.core.errors import DataError, nearest
from sftcore.data.rules.numbers import taken
from sftcore.data.source.files import BUILDERS, Files, local_files
from sftcore.data.source.load import Source, load
from sftcore.data.source.opened import ending
from sftcore.data.source.slices import window_of
from sftcore.data.store.stream import columns_of

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_READ_AS_WRITTEN = ("csv", "json", "text")
"""Builders of `datasets` that guess at types: they read 007 as 7, and NA as nothing."""


@dataclass
class DatasetConfig:
    """One data set of a mixture; the first five fields are arguments of `datasets.load_dataset`."""

    path: str
    """Hub id, folder or file of the data set."""
    name: str | None = None
    """Name of the data set's configuration."""
    data_dir: str | None = None
    """Folder within `path`."""
    data_files: str | list[str] | dict[str, str] | None = None
    """Files within `path`."""
    split: str = "train"
    """Split to load."""
    columns: list[str] | None = None
    """Columns to keep; None keeps all of them."""
    fraction: float | None = None
    """Share of the mixture, which is made as large as possible without repeating a row."""


def loaded(one: DatasetConfig, *, streaming: bool) -> Dataset | IterableDataset:
    """The rows of a split, with the columns that are kept.

    Raises:
        DataError: they cannot be loaded; for local files, the error names the line or row.
    """
    import datasets

    try:
        files = _splits(one)
        if files is not None:
            return _with_columns(_of_files(one, files, streaming=streaming), one)
        found = datasets.load_dataset(
            one.path, one.name, data_dir=one.data_dir, data_files=one.data_files, split=one.split, streaming=streaming
        )
    except DataError:
        raise
    except Exception as error:  # the hub's client and the builders raise many types of error
        reason = str(error.__cause__ or error).partition("\n")[0].rstrip(".")
        raise DataError(
            f"the data set cannot be loaded: {reason}.",
            where=one.path,
            fix="Check path, name and split; without a network connection, give a local file.",
        ) from error
    return _with_columns(found, one)


def _splits(one: DatasetConfig) -> dict[str, Files] | None:
    """The local files of each split, where we read them; None where `datasets` does."""
    import datasets

    path = Path(one.path).expanduser()
    if one.data_files is None and (not path.is_dir() or (path / "state.json").is_file()):
        found = local_files(one.path)
        if found is not None:
            return {"train": found}
    if not path.is_dir() and one.path not in _READ_AS_WRITTEN:
        return None
    source = str(path.resolve()) if path.is_dir() else one.path
    builder = datasets.load_dataset_builder(source, one.name, data_dir=one.data_dir, data_files=one.data_files)
    kind = type(builder).__module__.rpartition(".")[2]
    paths = {str(split): [Path(str(file)) for file in files] for split, files in builder.config.data_files.items()}
    if kind not in _READ_AS_WRITTEN or not all(file.is_file() for files in paths.values() for file in files):
        return None
    return {split: _checked(files, kind) for split, files in paths.items()}


def _checked(paths: list[Path], kind: str) -> Files:
    """These files of a split, which are refused where a recipe would refuse them."""
    known = all(ending(path) in BUILDERS for path in paths)
    found = local_files([str(path) for path in paths]) if known else None
    return found if found is not None and found.builder == kind else Files(tuple(paths), kind)


def _of_files(one: DatasetConfig, splits: Mapping[str, Files], *, streaming: bool) -> Any:
    """The rows of a split, which may be a slice of one, or several joined by +."""
    import datasets

    wanted = [part.strip() for part in one.split.split("+")]
    files = [_split_of(one, part, splits) for part in wanted]
    windows = [window_of(part, some, one.path) for part, some in zip(wanted, files, strict=True)]
    if not any(windows):  # as one, because `datasets` would give a stream the types of its first rows
        files, windows = [_joined(files)], [None]
    parts = []
    for some, window in zip(files, windows, strict=True):
        rows = load(Source(some.label, some), SourceSection(one.path), one.split, streaming=streaming)
        parts.append(rows if window is None else taken(rows, window))
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _split_of(one: DatasetConfig, part: str, splits: Mapping[str, Files]) -> Files:
    name = re.split(r"[\[(]", part)[0]
    if name in splits:
        return splits[name]
    if name == "all":
        return _joined(list(splits.values()))
    what = f'there is no split "{name}".{nearest(name, splits)}'
    raise DataError(what, where=one.path, fix=f"The splits are: {', '.join(splits)}.")


def _joined(files: Sequence[Files]) -> Files:
    return Files(tuple(path for some in files for path in some.paths), files[0].builder)


def _with_columns(rows: Any, one: DatasetConfig) -> Any:
    if one.columns is None:
        return rows
    known = columns_of(rows)
    if missing := [name for name in one.columns if name not in known]:
        what, fix = (
            f'there is no column "{missing[0]}".{nearest(missing[0], known)}',
            f"The columns are: {', '.join(known)}.",
        )
        raise DataError(what, where=one.path, fix=fix)
    return rows.select_columns(one.columns)
