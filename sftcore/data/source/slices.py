"""Slices of local files, written as `datasets` writes those of the hub: `train[:10]`, `train[10%:]`, `train[-100:]`."""

from __future__ import annotations

import re
from typing import TypeAlias

from sftcore.core.errors import DataError
from sftcore.data.rules.numbers import NO_END
from sftcore.data.source.files import Files, scan

Bound: TypeAlias = "tuple[int, bool] | None"
"""A number, and whether it is a percentage; None where the slice is open."""

_SLICE = re.compile(r"(?P<name>[\w\-]*)\[(?P<first>-?[\d_]+%?)?:(?P<last>-?[\d_]+%?)?\](?:\(closest\))?")
_NAMES = ("train", "test", "")
"""Names of splits that say nothing of local files: our own defaults."""
_FIX = "Write split: train[:100], train[10%:] or train[-100:]; several slices are several sources of the same path."


def window_of(split: str, files: Files, where: str) -> range | None:
    """The rows that the slice takes of these files, counted from 0 over all of them; None where it is no slice.

    The rows are counted only where the slice needs it; a range may end behind the last of them.

    Raises:
        DataError: this is not a slice, or takes no row; a file cannot be counted.
    """
    if not re.search(r"[\[\]+%(]", split):
        return None
    found = _SLICE.fullmatch(split.replace(" ", ""))
    if found is None:
        raise DataError(f'split "{split}" is not a slice of local files.', where=where, fix=_FIX)
    first, last = _bound(found["first"], split, where), _bound(found["last"], split, where)
    counted = [one for one in (first, last) if one is not None]
    if len({percent for number, percent in counted if number}) > 1:
        what = f'split "{split}" has a number and a percentage, which `datasets` reads as two percentages.'
        raise DataError(what, where=where, fix="Write both as numbers of rows, or both as percentages.")
    if any(percent or number < 0 for number, percent in counted):
        count = num_rows(files)
        start, stop = _absolute(first, count, 0), _absolute(last, count, count)
        said = f"takes none of the {count:,} rows"
    else:
        start, stop = first[0] if first else 0, last[0] if last else NO_END
        said = "takes no row"
    if start >= stop:
        raise DataError(f'split "{split}" {said}.', where=where, fix=_FIX)
    return range(start, stop)


def says_nothing(split: str) -> bool:
    """Whether this name of a split is what a local file has anyway, or a slice."""
    return split in _NAMES or "[" in split


def num_rows(files: Files) -> int:
    """The number of rows of local files, or of folders that `Dataset.save_to_disk` wrote.

    Raises:
        DataError: a file is broken.
    """
    if files.builder == "parquet":
        import pyarrow.parquet as pq

        return sum(int(pq.read_metadata(path).num_rows) for path in files.paths)
    if files.builder == "arrow":
        import datasets

        return sum(len(datasets.load_from_disk(str(path))) for path in files.paths)
    return sum(1 for _ in scan(files))


def _bound(text: str | None, split: str, where: str) -> Bound:
    if not text:
        return None
    percent, number = text.endswith("%"), int(text.rstrip("%"))
    if percent and abs(number) > 100:
        raise DataError(f'split "{split}" has {text}, of at most 100%.', where=where, fix=_FIX)
    return number, percent


def _absolute(bound: Bound, count: int, default: int) -> int:
    """The number of the row; percentages are rounded to the closest, as `datasets` does."""
    if bound is None:
        return default
    number, percent = bound
    at = round(number * count / 100) if percent else number
    return min(max(count + at, 0) if at < 0 or (percent and number < 0) else at, count)
