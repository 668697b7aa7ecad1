"""Remembers the numbers that rows have in their file when a data set holds some of them, or in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

_ATTRIBUTE = "_sftcore_row_numbers"


def part_of(whole: Dataset, rows: Sequence[int]) -> Dataset:
    """These rows; errors and reports keep calling them by their numbers in `whole`."""
    part: Any = whole.select(rows)
    setattr(part, _ATTRIBUTE, tuple(rows))
    return part


def numbers_of(dataset: Any) -> Sequence[int] | None:
    """The number of each row, or None if it is the index in the data set, as it is in all that users make."""
    found: Sequence[int] | None = getattr(dataset, _ATTRIBUTE, None)
    return found
