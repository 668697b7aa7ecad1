"""What became of every row and token of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import asdict, field, frozen


@frozen
class Ledger:
    """Counts that add up: rows in = kept + dropped, tokens in = kept + cut + dropped.

    `dropped` counts rows by reason; `first_dropped` gives the first row number of each, counted from 0. A row that a
    format turns into several counts as several. `tokens_supervised` are those that the loss is computed on.
    """

    name: str
    format: str
    rows_in: int
    rows_kept: int
    rows_cut: int
    tokens_in: int
    tokens_kept: int
    tokens_cut: int
    tokens_dropped: int
    tokens_supervised: int
    dropped: Mapping[str, int] = field(factory=dict)
    first_dropped: Mapping[str, int] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        assert self.rows_in == self.rows_kept + sum(self.dropped.values())
        assert self.tokens_in == self.tokens_kept + self.tokens_cut + self.tokens_dropped

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A short report, one fact a line."""
        lines = [
            f"{self.name}: {self.rows_kept:,} of {self.rows_in:,} rows kept ({self.format}), "
            f"{self.tokens_kept:,} tokens, {self.tokens_supervised:,} supervised"
        ]
        if self.rows_cut:
            lines.append(f"{self.name}: {self.rows_cut:,} rows cut to length, {self.tokens_cut:,} tokens away")
        lines += [
            f"{self.name}: {count:,} rows dropped, {reason} (first: row {self.first_dropped[reason]})"
            for reason, count in self.dropped.items()
        ]
        return lines
