"""The file and the line of rows that are numbered through all files of a source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, frozen

from sftcore.core.errors import SFTCoreError
from sftcore.data.source.files import Files
from sftcore.data.source.opened import opened_text
from sftcore.data.source.rows import rows_in
from sftcore.data.source.slices import num_rows

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]


@frozen(eq=False)
class Places:
    """The files of a source: how many rows each has, and the line that each row begins on, if the file has lines.

    paths: of the files, in their order. ends: how many rows there are up to the end of each. lines: (rows,) int64 from
    1, -1 where a file has none.
    """

    paths: tuple[str, ...]
    ends: Array
    lines: Array

    @classmethod
    def of(cls, files: Files) -> Places:
        """Those of these files, read once more."""
        lines = [_lines_of(path, files) for path in files.paths]
        ends = np.cumsum([len(one) for one in lines])
        return cls(tuple(map(str, files.paths)), ends, np.concatenate(lines))

    def columns(self, rows: Sequence[int] | Array) -> dict[str, pa.Array]:
        """The columns file, file_row and line of rows with these numbers, null of those that no file has."""
        import pyarrow as pa

        rows = np.asarray(rows, np.int64)
        which = np.searchsorted(self.ends, rows, side="right")
        outside = (rows < 0) | (which >= len(self.paths))
        indices = pa.array(which, pa.int32(), mask=outside)
        files = pa.DictionaryArray.from_arrays(indices, pa.array(self.paths, pa.string()))
        lines = np.append(self.lines, -1)[np.where(outside, len(self.lines), rows)]
        begins = np.concatenate([[0], self.ends[:-1], [0]])
        return {
            "file": files,
            "file_row": pa.array(rows - begins[which], pa.int64(), mask=outside),
            "line": pa.array(lines, pa.int64(), mask=lines < 0),
        }


def _lines_of(path: Path, files: Files) -> Array:
    """The line of each row of one file, -1 for each where it has no lines."""
    if files.builder in ("parquet", "arrow"):
        return np.full(num_rows(evolve(files, paths=(path,))), -1, np.int64)
    if files.builder == "json" and (lines := _of_json_lines(path)) is not None:
        return lines
    found = [-1 if raw.line is None else raw.line for raw in rows_in(path, files.builder, files.sample_by)
             if not raw.whole_file]  # fmt: skip
    return np.array(found, np.int64)


def _of_json_lines(path: Path) -> Array | None:
    """The same of a file with one object on each line, without reading the objects; None of any other."""
    found = []
    with opened_text(path, "surrogateescape") as file:
        for number, line in enumerate(file, 1):
            bare = line.strip(" \t\r\n\f\v")
            if bare:
                found.append(number)
            if len(found) == 1 and bare and (bare[0] != "{" or bare == "{"):
                return None
    return np.array(found, np.int64)


def places_of(files: Files | None) -> Places | None:
    """The places in these files; None where there are none, or they cannot be read any more."""
    if files is None:
        return None
    try:
        return Places.of(files)
    except (OSError, SFTCoreError):
        return None
