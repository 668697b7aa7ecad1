"""What the report of a data set says: its files, rows, tokens, roles, and what was found in it."""

from __future__ import annotations

from typing import Any

from attrs import asdict, define, frozen

from sftcore.check.findings import Finding
from sftcore.check.images import Images, Media
from sftcore.report.lengths import Lengths, Packed


@frozen
class FileReport:
    """A file, its rows, and the format that reads them, with its options if they were suggested."""

    path: str
    rows: int
    format: str


@define
class Counts:
    """Rows read, and what would become of them. If the format returns several examples for a row, each is counted.

    Without a tokenizer, only `read`, `broken` and `refused` are known.
    """

    read: int = 0
    broken: int = 0
    refused: int = 0
    dropped: int = 0
    kept: int = 0
    cut: int = 0


@define
class Tokens:
    """Tokens of the rows that are not refused: all = kept + cut + dropped; `supervised` is a part of `kept`."""

    all: int = 0
    kept: int = 0
    cut: int = 0
    dropped: int = 0
    supervised: int = 0


@define
class Role:
    """Counts of what one role says. The role `template` is everything else. `tokens` is 0 without a tokenizer."""

    turns: int = 0
    characters: int = 0
    tokens: int = 0


@frozen
class SetReport:
    """The report of one data set; `suggested` is the line that a recipe needs in order to use the same format."""

    name: str
    source: str
    model: str | None
    files: tuple[FileReport, ...]
    suggested: str
    rows: Counts
    tokens: Tokens | None
    lengths: Lengths | None
    max_length: int | None
    roles: dict[str, Role]
    packing: Packed | None
    findings: tuple[Finding, ...]
    images: Images | None = None
    media: tuple[Media, ...] = ()

    def count(self, severity: str) -> int:
        """How many findings are of this severity."""
        return sum(one.severity == severity for one in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
