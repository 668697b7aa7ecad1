"""Files of every kind that is read, with any bytes: rows, or one of our own errors, and no row is lost."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sftcore.config.recipe import DataSection, parse_recipe
from sftcore.config.setup import set_up_recipe
from sftcore.core.errors import SFTCoreError
from sftcore.data.source.files import BUILDERS, local_files, scan
from sftcore.data.source.load import Source, inspect, load
from sftcore.data.source.rows import raw_rows
from tests.fuzz.fuzz_profile import fuzzed

pytestmark = pytest.mark.slow

PIECES = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\r\n", b"\r", b" ", b"\\", b"\\ud800", b"\\u0000", b"null",
    b"true", b"NaN", b"Infinity", b"-", b"1e999", b"9" * 40, b"9" * 5000, b"[" * 2000, b'{"a":' * 500, b'"text"',
    b'{"text": "a"}', b'{"messages": [{"role": "user", "content": "a"}]}', b"\xef\xbb\xbf", b"\xff\xfe", b"\xff",
    b"\xed\xa0\x80", b"\x00", b"text,other\n", b"text\tother\n", b"a,b\n", b'"a\nb",', b"PAR1", b"PK\x03\x04",
    b"\x1f\x8b", b"\xe2\x80\xa8", b'"messages":', b'"prompt": "a", "completion":', b'"text":', b'"role":',
    b'"input_ids":',
]  # fmt: skip
contents = st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=24).map(b"".join)
endings = st.sampled_from(sorted(BUILDERS))


def parquet() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": ["a", "b"] * 20, "n": [[1], []] * 20}), buffer)
    return buffer.getvalue()


PARQUET = parquet()


@contextlib.contextmanager
def file_of(content: bytes, ending: str):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{ending}"
        path.write_bytes(content)
        yield path


@fuzzed(250)
@given(contents, endings)
@example(b'{"a": ' + b"[" * 100_000, ".jsonl")  # RecursionError
@example(b"[" * 100_000, ".json")
@example(b'{"a": ' + b"9" * 5000 + b"}", ".jsonl")  # ValueError of int()
@example(b"a,b\n\xff", ".csv")
@example(b'a,b\n"\x00', ".csv")
def test_any_bytes_are_rows_or_refused(content, ending):
    with file_of(content, ending) as path, contextlib.suppress(SFTCoreError):
        files = local_files(str(path))
        assert files is not None
        if files.builder != "parquet":
            assert all(isinstance(row, dict) for _, row in scan(files))


@fuzzed(150)
@given(contents, endings)
@example(b"text\na,b,c\n", ".csv")  # more cells than columns
@example(b"messages\nx", ".csv")
@example(b'{"messages": [3]}', ".jsonl")
def test_what_train_looks_at_first_is_read_by_a_format_or_refused(content, ending):
    with file_of(content, ending) as path, contextlib.suppress(SFTCoreError):
        recipe = parse_recipe({"model": "m", "data": str(path)})
        inspect(recipe.data.train, set_up_recipe(recipe))


@fuzzed(250)
@given(contents, endings)
@example(b"[" + b"[" * 100_000, ".json")
@example(b'[{"a": ' + b"9" * 5000 + b"}]", ".json")
@example(b"[1", ".json")
def test_a_report_reads_on_behind_anything(content, ending):
    with file_of(content, ending) as path:
        found = list(raw_rows(path, BUILDERS[ending]))
    assert all((one.row is None) != (one.fault is None) for one in found)


@fuzzed(200)
@given(st.lists(st.binary(max_size=12).filter(lambda line: not {10, 13} & set(line)) | st.sampled_from(
    [b'{"text": "a"}', b'{"text": ' + b"9" * 5000 + b"}", b'{"a": 1, "a": 2}', b'{"text": "\\ud800"}', b"3", b"null"]
), min_size=1, max_size=12))  # fmt: skip
@example([b'{"text": "a"}', b'{"text": ' + b"9" * 5000 + b"}", b'{"text": "a"}'])
def test_every_line_is_a_row_or_a_fault(lines):
    """Nothing in a line makes a report lose the lines behind it."""
    content = b"\n".join([b'{"text": "first"}', *lines])
    with file_of(content, ".jsonl") as path:
        found = [one for one in raw_rows(path, "json") if not one.whole_file]
    expected = 1 + sum(1 for line in lines if line.strip())
    assert len(found) == expected
    assert found[0].row == {"text": "first"}


@fuzzed(60)
@given(st.integers(0, len(PARQUET) - 1), st.binary(min_size=1, max_size=8), st.booleans())
def test_a_damaged_parquet_file_is_rows_or_refused(at, patch, cut):
    content = PARQUET[:at] if cut else PARQUET[:at] + patch + PARQUET[at + len(patch) :]
    with file_of(content, ".parquet") as path:
        list(raw_rows(path, "parquet"))
        with contextlib.suppress(SFTCoreError):
            local_files(str(path))


row_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@fuzzed(12)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["text", "a", "messages"]), row_values, min_size=1), min_size=1, max_size=4
    )
)
@example([{"a": 10**30}])
@example([{"a": 1}, {"a": "x"}])
@example([{"a": {}}])
@example([{"a": {"": 1}}])
def test_what_datasets_makes_of_a_file_has_its_rows_or_is_refused(rows):
    """Also values that JSON can hold and Arrow cannot."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with file_of(content, ".jsonl") as path, contextlib.suppress(SFTCoreError):
        files = local_files(str(path))
        assert len(load(Source("rows", files), DataSection("rows"), "train")) == len(rows)


# --- Whole files, as somebody wrote them, and then damaged -----------------------------------------------------------
cells = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1, max_size=8).map(
    lambda text: f"a{text}"
)
chat = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": cells}), min_size=1)
WRITTEN = st.one_of(
    st.lists(st.fixed_dictionaries({"text": cells}), min_size=1, max_size=8),
    st.lists(st.fixed_dictionaries({"prompt": cells, "completion": cells}), min_size=1, max_size=8),
    st.lists(st.fixed_dictionaries({"messages": chat}), min_size=1, max_size=4),
)


def written(rows: list[dict], ending: str) -> bytes:
    """The rows as a file of this type."""
    if ending == ".parquet":
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    if ending in (".csv", ".tsv"):
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, list(rows[0]), delimiter="\t" if ending == ".tsv" else ",")
        table.writeheader()
        table.writerows(rows)
        return text.getvalue().encode()
    if ending == ".json":
        return json.dumps(rows, ensure_ascii=False).encode()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def endings_for(rows: list[dict]) -> list[str]:
    """A cell of a CSV file is a text."""
    return [".jsonl", ".json", ".parquet", *([] if "messages" in rows[0] else [".csv", ".tsv"])]


@fuzzed(60)
@given(WRITTEN, st.data())
def test_a_file_gives_the_rows_that_were_written(rows, data):
    ending = data.draw(st.sampled_from(endings_for(rows)))
    with file_of(written(rows, ending), ending) as path:
        assert [one.row for one in raw_rows(path, BUILDERS[ending])] == rows
        files = local_files(str(path))
        assert files is not None
        if ending != ".parquet":
            assert [row for _, row in scan(files)] == rows


@fuzzed(12)
@given(WRITTEN, st.data())
def test_what_is_read_for_a_run_are_the_rows_that_were_written(rows, data):
    ending = data.draw(st.sampled_from(endings_for(rows)))
    with file_of(written(rows, ending), ending) as path:
        files = local_files(str(path))
        assert files is not None
        assert load(Source("rows", files), DataSection("rows"), "train").to_list() == rows


cuts = st.tuples(st.floats(0, 1), st.integers(0, 6), st.binary(max_size=3) | st.sampled_from(PIECES))


@fuzzed(250)
@given(WRITTEN, st.data(), st.lists(cuts, min_size=1, max_size=3))
def test_a_damaged_file_is_read_alike_by_report_and_run_or_refused(rows, data, damages):
    """Where neither finds a fault, both have the same rows; a line that was not touched is never lost."""
    ending = data.draw(st.sampled_from(endings_for(rows)))
    content = written(rows, ending)
    for place, removed, added in damages:
        at = int(place * len(content))
        content = content[:at] + added + content[at + removed :]
    with file_of(content, ending) as path:
        found = list(raw_rows(path, BUILDERS[ending]))
        try:
            files = local_files(str(path))
            assert files is not None
            read = [] if ending == ".parquet" else [row for _, row in scan(files)]
        except SFTCoreError:
            return
    if ending in (".jsonl", ".json") and not [one for one in found if one.fault]:
        assert json.dumps([one.row for one in found]) == json.dumps(read)
    if ending == ".jsonl":
        untouched = {json.dumps(row) for row in rows} & set(content.decode(errors="replace").split("\n"))
        assert untouched <= {json.dumps(one.row) for one in found}
