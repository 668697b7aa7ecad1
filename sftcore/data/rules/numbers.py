"""Rows that are taken of a data set or stream, with the numbers that they have in their file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

NO_END = 2**62
"""Behind the last row of all that there are."""
_ROW_NUMBERS = "_sftcore_row_numbers"


def numbers_of(dataset: Any) -> Sequence[int] | None:
    """The number of each row in its file, or None if it is the index in the data set, as in all that users make."""
    found: Sequence[int] | None = getattr(dataset, _ROW_NUMBERS, None)
    return found


def numbered(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    """These rows, which keep the numbers that they have in the data set, or had in the one that it was taken from."""
    before, found = numbers_of(dataset), dataset.select(rows)
    if before is not None:
        rows = before[rows.start : rows.stop] if isinstance(rows, range) else [before[row] for row in rows]
    return with_numbers(found, rows if isinstance(rows, range) else tuple(rows))


def taken(dataset: Any, window: range) -> Any:
    """Those rows of a data set or stream that are in the window, with their numbers."""
    if hasattr(dataset, "select"):
        return numbered(dataset, numbers_in(window, len(dataset)))
    numbers = numbers_of(dataset)
    found = dataset.skip(window.start) if window.start else dataset
    found = found if window.stop >= NO_END else found.take(len(window))
    # a stream counts its rows as they come
    return with_numbers(found, range(window.start, NO_END) if numbers is None else numbers[window.start :])


def with_numbers(dataset: Any, numbers: Sequence[int]) -> Any:
    """The data set or stream, whose rows have these numbers in their file."""
    if not isinstance(numbers, range) or numbers.start:
        setattr(dataset, _ROW_NUMBERS, numbers)
    return dataset


def numbers_in(window: range, count: int) -> Sequence[int]:
    """The numbers of those of the window's rows that there are."""
    return range(min(window.start, count), min(window.stop, count))
