"""The numbers that rows have in the files they came from, where a data set holds a part of those in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

_ATTRIBUTE = "_sftcore_row_numbers"


def part_of(whole: Dataset, rows: Sequence[int]) -> Dataset:
    """These rows, which errors and reports go on to call by their numbers in `whole`."""
    part: Any = whole.select(rows)
    setattr(part, _ATTRIBUTE, tuple(rows))
    return part


def numbers_of(dataset: Any) -> Sequence[int] | None:
    """The number of each row; None where it is its place in the data set, as in any that users make themselves."""
    found: Sequence[int] | None = getattr(dataset, _ATTRIBUTE, None)
    return found
