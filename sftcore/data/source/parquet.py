"""How many rows of a Parquet file are read at once: a text that it stores once may stand in every row."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_BYTES = 2**29
"""What the texts of the rows that are read at once have at most; Arrow's own limit is 2 GiB a column."""


def rows_at_once(paths: Iterable[Path]) -> int | None:
    """How many rows may be read at once where a column is a dictionary (a category of pandas); None where none is.

    No text of a column has more bytes than the column itself.
    """
    import pyarrow.parquet

    largest = 0
    for path in paths:
        with pyarrow.parquet.ParquetFile(path) as file:
            if not any("dictionary<" in str(one.type) for one in file.schema_arrow):
                continue
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        sizes = [one.column(number).total_uncompressed_size for one in groups for number in range(one.num_columns)]
        largest = max(largest, 1, *sizes)
    return max(1, _BYTES // largest) if largest else None
