"""Rows of every kind of file: what was written is what `sftcore check` and a run read, or both name a fault."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sftcore.core.errors import DataError
from sftcore.data.source.files import local_files, scan
from sftcore.data.source.rows import raw_rows

PACKERS = {
    "": lambda raw, _: raw,
    ".gz": lambda raw, _: gzip.compress(raw),
    ".bz2": lambda raw, _: bz2.compress(raw),
    ".xz": lambda raw, _: lzma.compress(raw),
    ".zst": lambda raw, _: zstd(raw),
    ".zip": lambda raw, name: zipped(raw, name),
}


def zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


def zipped(raw: bytes, name: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(name, raw)
    return sink.getvalue()


def as_csv(rows, delimiter=",", breaks="\r\n") -> str:
    sink = io.StringIO(newline="")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(sink, columns, delimiter=delimiter, lineterminator=breaks, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows({key: value for key, value in row.items() if value is not None} for row in rows)
    return sink.getvalue()


def jsonl(breaks):
    return lambda rows: "".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) + breaks for row in rows)


WRITERS = {
    "lines.jsonl": jsonl("\n"),
    "crlf.jsonl": jsonl("\r\n"),
    "gaps.jsonl": jsonl("\n\n \n"),
    "lines.json": jsonl("\n"),
    "list.json": json.dumps,
    "indented.json": lambda rows: "\n  " + json.dumps(rows, indent=2) + "\n",
    "table.csv": as_csv,
    "semicolons.csv": lambda rows: as_csv(rows, ";", "\n"),
    "table.tsv": lambda rows: as_csv(rows, "\t"),
    "texts.txt": lambda rows: "\n".join(str(row) for row in rows),
}
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(["text", "messages", "a b", "ö"])
ROWS = st.lists(st.dictionaries(NAMES, VALUES, min_size=1), min_size=1, max_size=4)
TABLES = st.lists(st.fixed_dictionaries({"text": WORDS, "ö": st.none() | WORDS}), min_size=1, max_size=4)


CHANGES = [b"", b'"', b",", b"\xff", b"{", b"]", b"\\ud800", b"\n", b"3", b"\r", b"\xc2\x85", b"\x1c"]


def both(path) -> list | None:
    """The rows of both readers, which have to agree: what one names as a fault, the other one stops at."""
    files = local_files(str(path))
    checked = list(raw_rows(path, files.builder))
    try:
        found = [row for _, row in scan(files)]
    except DataError:
        assert any(raw.fault for raw in checked)
        return None
    assert [raw.row for raw in checked] == found
    return found


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), packer=st.sampled_from(list(PACKERS)), bom=st.booleans())
def test_both_readers_give_the_rows_that_were_written(tmp_path, name, data, packer, bom):
    is_table = name.endswith(("csv", "tsv"))
    rows = data.draw(TABLES if is_table else ROWS)
    raw = WRITERS[name](rows).encode("utf-8")
    path = tmp_path / f"{name}{packer}"
    path.write_bytes(PACKERS[packer]((b"\xef\xbb\xbf" if bom else b"") + raw, name))
    found = both(path)
    if is_table:
        rows = [{key: value or None for key, value in row.items()} for row in rows]
    if not name.endswith("txt"):
        assert found == rows


@pytest.mark.parametrize("name", [one for one in WRITERS if not one.endswith("txt")])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=TABLES,
    where=st.floats(0, 1),
    what=st.sampled_from(CHANGES),
)
def test_both_readers_find_a_fault_or_none(tmp_path, name, rows, where, what):
    raw = WRITERS[name](rows).encode("utf-8")
    at = int(where * len(raw))
    path = tmp_path / name
    path.write_bytes(raw[:at] + what + raw[at + 1 :])
    if path.read_bytes():
        both(path)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=TABLES)
def test_a_parquet_file_is_read_by_check_as_a_run_reads_it(tmp_path, rows):
    from datasets import load_dataset

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([("text", pa.large_string()), ("ö", pa.string())])), path)
    loaded = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    assert [raw.row for raw in raw_rows(path, "parquet")] == rows == list(loaded)
