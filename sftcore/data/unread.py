"""Finds the columns that hold something and that a format does not read, by watching it read the first rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sftcore.core.types import Row
from sftcore.data.format import RowReader
from sftcore.data.pipeline import rows_of
from sftcore.data.store.mapstyle import as_stored
from sftcore.util.shown import shortened

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset

WATCHED = 16
"""How many rows are watched; of a stream, whose rows are read again afterwards, a few."""
_OF_A_STREAM = 4


class Watched(dict[str, Any]):
    """A row that remembers which columns were asked for."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The column's value."""
        self.asked.add(key)
        return super().get(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        """The column's value, which is taken out."""
        self.asked.add(key)
        return super().pop(key, *default)

    def __iter__(self) -> Iterator[str]:
        self.asked.update(super().keys())
        return super().__iter__()

    def keys(self) -> Any:
        """The columns; who asks for all may read each."""
        self.asked.update(super().keys())
        return super().keys()

    def items(self) -> Any:
        """The columns with their values."""
        self.asked.update(super().keys())
        return super().items()

    def values(self) -> Any:
        """The values of the columns."""
        self.asked.update(super().keys())
        return super().values()


def unread(reader: RowReader, rows: Iterable[Row]) -> dict[str, Any]:
    """The columns that hold something in these rows and are not read, each with the first such value.

    Rows that are refused tell nothing; with a formatting function every column is for the user to choose.
    """
    rows = [] if reader.label == "formatting_func" else list(rows)
    asked = _asked_for(reader, rows[:WATCHED])
    held: dict[str, Any] = {}
    for row in rows if asked else ():
        held.update({column: value for column, value in row.items() if column not in held and _holds(value)})
    return {column: value for column, value in held.items() if column not in asked}


def _asked_for(reader: RowReader, rows: Iterable[Row]) -> set[str]:
    asked: set[str] = set()
    for row in rows:
        watched = Watched(row)
        with suppress(Exception):  # the same row is refused by name when the run reads it
            reader.formatter(watched)
            asked |= watched.asked
    return asked


def said(columns: dict[str, Any]) -> str:
    """What is said of unread columns, "" if there are none."""
    if not columns:
        return ""
    named = ", ".join(f'"{column}" ({shortened(value, 40)})' for column, value in columns.items())
    return f"not read, each with an example: the column{'s' * (len(columns) > 1)} {named}"


def unread_of(reader: RowReader, dataset: Dataset | IterableDataset) -> dict[str, Any]:
    """The unread columns of a set: by its first rows, and if a column is empty there, by its first value."""
    if not hasattr(dataset, "data"):
        return unread(reader, itertools.islice(dataset.take(_OF_A_STREAM), _OF_A_STREAM))
    first: Sequence[Row] = rows_of(as_stored(dataset)[:WATCHED])
    if dataset._indices is None and reader.label != "formatting_func" and (asked := _asked_for(reader, first)):
        empty = [
            name for name in dataset.column_names if name not in asked and not any(_holds(one[name]) for one in first)
        ]
        first = [
            *first,
            *({name: value} for name in empty if (value := _first_of(dataset.data.column(name))) is not None),
        ]
    return unread(reader, first)


def _first_of(column: pa.ChunkedArray) -> Any:
    """The first value that is not null."""
    chunk = next((chunk for chunk in column.chunks if chunk.null_count < len(chunk)), None)
    return None if chunk is None else chunk.drop_null()[0].as_py()


def _holds(value: Any) -> bool:
    if value is None:
        return False
    return bool(len(value)) if hasattr(value, "__len__") else True
