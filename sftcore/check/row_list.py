"""The list of rows that a report writes: the same table as a run writes, without losses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field

from sftcore.data.account.table import joined, same_as, table_of, write_table

if TYPE_CHECKING:
    import pyarrow as pa

    from sftcore.check.findings import Location

_COLUMNS = (
    "set", "source", "file", "row", "file_row", "line", "part", "outcome", "reason", "tokens", "tokens_cut",
    "supervised",
)  # fmt: skip
_BATCH = 10_000


@define
class RowList:
    """Collects what becomes of each row of all sets of a report, in columns."""

    _tables: list[pa.Table] = field(factory=list)
    _columns: dict[str, list[Any]] = field(factory=lambda: {name: [] for name in _COLUMNS})
    _digests: list[int] = field(factory=list)
    _last: tuple[str, str, int] | None = None
    _part: int = 0

    def add(
        self,
        source: tuple[str, str],
        location: Location,
        first: int,
        outcome: str,
        reason: str | None = None,
        counts: tuple[int, int, int] | None = None,
        digest: int = 0,
    ) -> None:
        """Add one example of a row.

        Args:
            source: the names of the set and of the source in it.
            location: of the row.
            first: the number of the first row of its file.
            outcome: what becomes of it, and `reason` why.
            counts: its tokens, how many of them are cut, and how many are supervised; None where nothing is tokenized.
            digest: by which equal rows are found, 0 for none.
        """
        assert location.row is not None
        key = (*source, location.row)
        self._part = self._part + 1 if key == self._last else 0
        self._last = key
        place = location.row, location.row - first, location.line
        values = (*source, location.file, *place, self._part, outcome, reason or None, *(counts or (None,) * 3))
        for name, value in zip(_COLUMNS, values, strict=True):
            self._columns[name].append(value)
        self._digests.append(digest if digest < 1 << 63 else digest - (1 << 64))
        if len(self._columns["row"]) == _BATCH:
            self._close()

    def _close(self) -> None:
        if count := len(self._columns["row"]):
            self._tables.append(table_of(self._columns, count))
            self._columns = {name: [] for name in _COLUMNS}

    def write(self, path: Path) -> int:
        """Write the list, and say how many rows it has.

        Raises:
            WriteError: it cannot be written.
        """
        self._close()
        table = joined(self._tables)
        if len(table):
            table = table.set_column(table.column_names.index("same_as"), "same_as", same_as(self._digests))
        write_table(table, path, {"loss": None, "epochs": [], "of": "check"})
        return len(table)
