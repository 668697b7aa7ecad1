"""Cutting rows to length, and rows that have nothing left to learn from."""

from __future__ import annotations

from typing import Literal, TypeAlias

from sftcore.data.tokenize import IGNORED
from sftcore.types import TokenizedRow

Mode: TypeAlias = Literal["keep_start", "keep_end"]


def truncate(row: TokenizedRow, max_length: int | None, mode: Mode = "keep_start") -> TokenizedRow:
    """The row, or the first or last `max_length` tokens of it.

    >>> truncate(TokenizedRow([1, 2, 3], [-100, 2, 3]), 2, "keep_end")
    TokenizedRow(input_ids=[2, 3], labels=[2, 3], weights=None)
    """
    length = len(row.input_ids)
    if max_length is None or length <= max_length:
        return row
    kept = slice(0, max_length) if mode == "keep_start" else slice(length - max_length, length)
    return TokenizedRow(
        row.input_ids[kept],
        None if row.labels is None else row.labels[kept],
        None if row.weights is None else row.weights[kept],
    )


def num_supervised(row: TokenizedRow) -> int:
    """How many tokens the model is trained to predict: the first of a row has nothing before it to predict it from."""
    if row.labels is None:
        return max(len(row.input_ids) - 1, 0)
    labels = row.labels[1:]
    if row.weights is None:
        return len(labels) - list(labels).count(IGNORED)
    return sum(label != IGNORED and weight > 0 for label, weight in zip(labels, row.weights[1:], strict=True))
