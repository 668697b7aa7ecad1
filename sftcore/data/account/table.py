"""The file that lists every row of the data: its columns, and how it is written and read.

docs/reference/rows-file.md describes the columns for whoever reads the file without us.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sftcore.core.errors import DataError
from sftcore.util.disk import writing

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "rows.parquet"
SCHEMA = 1
_FACTS = b"sftcore"
KEPT, CUT, DROPPED, REFUSED, BROKEN = "kept", "cut", "dropped", "refused", "broken"
"""What may have become of a row."""
_LOSSES = ("epochs", "loss", "loss_tokens")


def schema() -> pa.Schema:
    """The columns, in their order."""
    import pyarrow as pa

    text = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("set", text), ("source", text), ("file", text), ("row", pa.int64()), ("file_row", pa.int64()),
            ("line", pa.int64()), ("part", pa.int32()), ("outcome", text), ("reason", text), ("tokens", pa.int64()),
            ("tokens_cut", pa.int64()), ("supervised", pa.int64()), ("same_as", pa.int64()),
            ("epochs", pa.list_(pa.int32())), ("loss", pa.list_(pa.float32())), ("loss_tokens", pa.list_(pa.int32())),
        ]
    )  # fmt: skip


def table_of(columns: Mapping[str, Any], count: int) -> pa.Table:
    """The table from some of its columns; what is not given is null, a single text is that of all rows."""
    import pyarrow as pa

    arrays = []
    for field in schema():
        given = columns.get(field.name)
        if given is None:
            arrays.append(pa.nulls(count, field.type))
        elif isinstance(given, str):
            indices = pa.array(np.zeros(count, np.int32))
            arrays.append(pa.DictionaryArray.from_arrays(indices, pa.array([given], pa.string())))
        elif pa.types.is_dictionary(field.type):
            found = given if isinstance(given, (pa.Array, pa.ChunkedArray)) else pa.array(given, pa.string())
            found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
            arrays.append(found.dictionary_encode().cast(field.type))
        else:
            arrays.append(given if isinstance(given, pa.Array) else pa.array(given, field.type))
    return pa.table(arrays, schema=schema())


def joined(tables: list[pa.Table]) -> pa.Table:
    """The tables of several sources as one."""
    import pyarrow as pa

    return pa.concat_tables(tables).unify_dictionaries() if tables else schema().empty_table()


def same_as(digests: Any) -> Any:
    """For each row the place in the file of the first one with its digest, or null: it is that itself, or has none.

    digests: (rows,) int64, 0 for a row that is compared with none.

    >>> same_as([5, 0, 7, 5, 0]).to_pylist()
    [None, None, None, 0, None]
    """
    import pyarrow as pa

    digests = np.asarray(digests, np.int64)
    _, first, which = np.unique(digests, return_index=True, return_inverse=True)
    found = first[which.reshape(-1)]
    own = (found == np.arange(len(digests))) | (digests == 0)
    return pa.array(found, pa.int64(), mask=own)


def write_table(table: pa.Table, path: Path, facts: Mapping[str, Any]) -> None:
    """Write the file in one step: readers see the old one or the new one.

    Args:
        facts: what is said of the whole file, as JSON takes it, such as which loss it holds.

    Raises:
        WriteError: it cannot be written; the old one is still there.
    """
    import pyarrow.parquet as pq

    told = json.dumps({"schema": SCHEMA, **facts}, ensure_ascii=False).encode()
    aside = path.with_name(f".tmp-{path.name}")
    with writing("the list of rows", path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.replace_schema_metadata({_FACTS: told}), aside, compression="zstd")
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def read_table(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The table and what is said of the whole file, from the file itself or the folder of a run.

    Raises:
        DataError: there is none, or it is not such a file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise DataError(
            f"there is no {path.name}.",
            where=str(path.parent),
            fix=f"Name the folder of a run, or write the list without one: sftcore check RECIPE --rows {FILE}.",
        )
    fix = "Write it anew: sftcore check RECIPE --rows FILE, or by a run."
    try:
        table = pq.read_table(path)
        facts = json.loads((table.schema.metadata or {})[_FACTS])
    except (OSError, pa.ArrowException) as error:
        said = " ".join(str(error).split())
        raise DataError(f"it cannot be read as Parquet: {said}", where=str(path), fix=fix) from error
    except (KeyError, ValueError) as error:
        raise DataError("it is not a list of rows that sftcore has written.", where=str(path), fix=fix) from error
    missing = [name for name in schema().names if name not in table.column_names]
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA or missing:
        lacks = f": it lacks the column {missing[0]}" if missing else f", schema {SCHEMA}"
        raise DataError(f"it is not a list of rows that this version reads{lacks}.", where=str(path), fix=fix)
    return table, facts
