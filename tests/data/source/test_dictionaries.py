"""Parquet columns that are dictionaries, and hold a text of a few bytes in the file for gigabytes of rows."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftcore.config.data.section import SourceSection
from sftcore.data.source.files import local_files
from sftcore.data.source.load import Source, load
from sftcore.data.source.parquet import rows_at_once

ROWS, LENGTH = 2200, 1_000_000
"""More than 2 GiB in all."""


def dictionary(texts, count=ROWS):
    return pa.DictionaryArray.from_arrays(pa.array([i % len(texts) for i in range(count)], pa.int32()), pa.array(texts))


def write(path, array, **options):
    pq.write_table(pa.table({"n": list(range(len(array))), "text": array}), path, compression="zstd", **options)
    return Source(str(path), local_files(str(path)))


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    source = write(tmp_path_factory.mktemp("huge") / "rows.parquet", dictionary(["x" * LENGTH, "y" * LENGTH]))
    assert source.files.paths[0].stat().st_size < 20_000
    return source


def test_they_stream(huge):
    stream = load(huge, SourceSection(huge.label), "train", streaming=True)
    found = [(row["n"], row["text"][0], len(row["text"])) for row in itertools.islice(stream, 600)]
    assert found == [(n, "xy"[n % 2], LENGTH) for n in range(600)]


def test_small_ones_are_read_whole_and_others_as_before(tmp_path):
    small = write(tmp_path / "small.parquet", dictionary(["a", "b"], 10))
    plain = write(tmp_path / "plain.parquet", pa.array(["a", "b"] * 5))
    loaded = load(small, SourceSection(small.label), "train")
    assert loaded["text"][:] == ["a", "b"] * 5
    assert rows_at_once(small.files.paths) > 10**6
    assert rows_at_once(plain.files.paths) is None


def test_a_file_without_rows_has_no_size(tmp_path):
    write(tmp_path / "empty.parquet", dictionary(["a"], 0))
    assert rows_at_once([tmp_path / "empty.parquet"]) > 0
