"""JSON as it is, tables of every dialect, compressed files: all rows with their own values, or refused by name."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import lzma
import random
import zipfile

import pyarrow
import pytest

from sftcore import ConflictError, DataError
from sftcore.config.recipe import load_recipe
from sftcore.config.setup import set_up_recipe
from sftcore.data.nulls import meant_nulls
from sftcore.data.source.files import local_files, scan
from sftcore.data.source.load import Source, load
from sftcore.data.source.rows import raw_rows
from sftcore.data.source.several import inspect_set, load_set

ROW = {"text": "one", "n": 1}


def loaded(path, *, streaming: bool = False) -> list[dict]:
    recipe = load_recipe(None, [f"data={path}", "model=m"])
    files = local_files(str(path))
    found = load(Source(files.label, files), recipe.data, "train", streaming=streaming)
    return [dict(row) for row in found]


def reported(path) -> list[dict]:
    (only,) = local_files(str(path)).paths
    raws = list(raw_rows(only, local_files(str(path)).builder))
    assert not [raw.fault for raw in raws if raw.fault]
    return [raw.row for raw in raws]


def without_nulls(rows):
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


# --- 40 files of mixed JSON -----------------------------------------------------------------------------------------
MIXED = {
    "arguments that differ": [
        {"calls": [{"name": "f", "arguments": {"x": 1}}]},
        {"calls": [{"name": "g", "arguments": {"y": "a", "z": None}}]},
    ],
    "meta that differs": [
        {"text": "a", "meta": {"a": 1}}, {"text": "b", "meta": {"b": [1]}}, {"text": "c", "meta": None},
    ],
    "a number here and a text there": [{"text": "a", "id": 1}, {"text": "b", "id": "x"}],
    "a list here and a mapping there": [{"text": "a", "m": [1]}, {"text": "b", "m": {"k": 1}}],
    "late columns": [*({"text": str(i)} for i in range(2)), {"text": "z", "late": {"a": 1}}],
    "big integers": [{"text": "a", "id": 2**70}, {"text": "b", "id": 3}],
    "dates": [{"text": "2024-01-31"}, {"text": "2024-01-31 10:00:00"}],
    "dates inside": [{"text": "a", "m": {"day": "2024-01-31 10:00:00"}}],
    "nulls that are meant": [{"m": {"x": None, "y": 1}}, {"m": {"y": 2}}],
    "schemas": [{"tools": [{"p": {"a": {"type": "int"}}}]}, {"tools": [{"p": {"b": {"enum": ["x"]}}}]}],
    "whole numbers and others": [{"text": "a", "n": 1}, {"text": "b", "n": 1.5}],
    "true and numbers": [{"text": "a", "n": True}, {"text": "b", "n": 2}],
    "lists of mixed kinds": [{"text": "a", "l": [1, "a", None, {"b": 2}]}],
}  # fmt: skip
ENDINGS = ("jsonl", "crlf.jsonl", "bom.jsonl", "json")
FILES = [(name, ending, number) for number, name in enumerate(MIXED) for ending in ENDINGS]


@pytest.mark.parametrize(("name", "ending", "number"), FILES, ids=lambda one: str(one).replace(" ", "-"))
def test_every_row_of_a_mixed_file_keeps_its_own_values(name, ending, number, tmp_path):
    rows = MIXED[name]
    text = json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows)
    text = text.replace("\n", "\r\n") if ending.startswith("crlf") else text
    path = tmp_path / f"d{number}.{ending}"
    path.write_bytes((b"\xef\xbb\xbf" if ending.startswith("bom") else b"") + text.encode())
    for found in (loaded(path), loaded(path, streaming=True), reported(path)):
        assert without_nulls(found) == without_nulls(rows)
    assert not any(isinstance(value, datetime.datetime) for row in loaded(path) for value in row.values())


def test_rows_that_differ_behind_the_sample_keep_their_values_too(tmp_path):
    rows = [{"text": str(i), "m": {"a": i}} for i in range(1200)] + [
        {"text": "z", "m": {"b": "x"}},
        {"text": "y", "m": "t"},
    ]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert without_nulls(loaded(path)) == rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"m": {"a": 1}}\n{"m": 2, "m": 3}\n', 'line 2: broken JSON: the key "m" stands twice'),
        ('{"m": {"a": 1}}\n{"m": "\\ud800"}\n', "line 2: half a surrogate pair"),
        ('{"m": {"a": 1}}\n{"m": \n', "line 2: broken JSON"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(text, said, write):
    path = write("d.jsonl", text)
    with pytest.raises(DataError, match=said):
        loaded(path)
    with pytest.raises(DataError, match=said):
        list(scan(local_files(str(path))))


# --- Tables ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_cells_of_any_dialect_are_taken_as_they_are_written(delimiter, ending, tmp_path):
    rows = [["question", "answer"], ["What, then?", "4"], ["How many; so?", "007"], ["Is it?", "true"], ["NA", "1e5"]]
    cells = [[f'"{cell}"' if set(cell) & set(",;") else cell for cell in row] for row in rows]
    path = tmp_path / f"d.{ending}"
    path.write_text("\n".join(delimiter.join(row) for row in cells) + "\n", encoding="utf-8-sig")
    wanted = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert loaded(path) == reported(path) == loaded(path, streaming=True) == wanted


def test_a_table_of_one_column_with_commas_is_one_column(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text('text\n"a, b"\n"c; d"\n')
    assert loaded(path) == [{"text": "a, b"}, {"text": "c; d"}]


def test_a_text_file_is_a_row_for_each_line(write):
    path = write("d.txt", "one\n\n  two\r\n")
    assert loaded(path) == reported(path) == [{"text": "one"}, {"text": "  two"}]


# --- Compressed, encodings, spreadsheets, folders -------------------------------------------------------------------
def packed(kind: str, content: bytes, path) -> None:
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inner.jsonl", content)
    elif kind == "zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as out:
            out.write(content)
    else:
        path.write_bytes({"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind](content))


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.jsonl.bz2", "d.jsonl.xz", "d.jsonl.zst", "d.jsonl.zip", "d.zip"])
def test_compressed_files_are_read_and_bombs_are_not(name, tmp_path, monkeypatch):
    path = tmp_path / name
    packed(path.suffix[1:], (json.dumps(ROW) + "\n").encode() * 3, path)
    assert loaded(path) == reported(path) == loaded(path, streaming=True) == [ROW] * 3
    monkeypatch.setattr("sftcore.data.source.opened._LEAST", 2**12)
    packed(path.suffix[1:], b" " * 2**20 + b"{}", path)
    with pytest.raises(DataError, match="unpacks to more than any text would"):
        loaded(path)


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.jsonl.bz2", "d.jsonl.xz", "d.jsonl.zst", "d.jsonl.zip"])
def test_a_damaged_or_misnamed_compressed_file_is_named(name, tmp_path):
    path = tmp_path / name
    content = "".join(json.dumps({"text": str(random.Random(i).random())}) + "\n" for i in range(2000)).encode()
    packed(path.suffix[1:], content, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for damaged in (path.read_bytes(), b'{"text": "a"}\n'):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{name}: the"):
            loaded(path)


def test_an_archive_of_several_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.jsonl.zip", "w") as archive:
        for name in ("a.jsonl", "b.jsonl"):
            archive.writestr(name, "{}")
    with pytest.raises(DataError, match="the archive holds 2 files"):
        local_files(str(tmp_path / "d.jsonl.zip"))


@pytest.mark.parametrize(("encoding", "said"), [("cp1252", "Windows-1252"), ("utf-16", "the file is UTF-16")])
@pytest.mark.parametrize("name", ["d.csv", "d.jsonl", "d.txt"])
def test_other_encodings_are_named(encoding, said, name, tmp_path):
    text = {"d.csv": "text\n“é”\n", "d.jsonl": '{"text": "“é”"}\n', "d.txt": "“é”\n"}[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=f"{said}.*iconv -f"):
        loaded(tmp_path / name)


@pytest.mark.parametrize("name", ["d.xlsx", "d.xls", "d.ods"])
def test_a_spreadsheet_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"a spreadsheet.*Save the sheet as CSV"):
        local_files(str(tmp_path / name))


def test_a_folder_of_several_types_says_which_files_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text((json.dumps(ROW) + "\n") * 9)
    (tmp_path / "b.csv").write_text("text\na\n")
    for name in ("config.json", "dataset_info.json", "README.md", "requirements.txt"):
        (tmp_path / name).write_text('{"a": 1}')
    with pytest.warns(UserWarning, match=r"1 of type json are read \(a.jsonl\), and 1 other are not \(b.csv\)"):
        assert loaded(tmp_path) == [ROW] * 9
    (tmp_path / "b.csv").unlink()
    assert [path.name for path in local_files(str(tmp_path)).paths] == ["a.jsonl"]


# --- Nulls that were written
def calling(arguments) -> dict:
    call = {"id": None, "type": "function", "function": {"name": "f", "arguments": arguments}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"messages": [{"role": "user", "content": "go", "tool_calls": None}, answer]}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "all_of_them",
    [
        [{"x": None, "y": 1}, {"x": 2, "y": 1}],  # alike, as Arrow would read them
        [{"x": None}, {"x": "one", "z": 2}, {"y": None}],
        [{"x": {"deep": [None, {"a": None}]}}],
    ],
)
def test_a_null_in_the_arguments_of_a_call_stays_whatever_the_other_rows_hold(tmp_path, all_of_them, streaming):
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps(calling(one)) + "\n" for one in all_of_them))
    recipe = load_recipe(None, [f"data={path}", "model=m"])
    given = inspect_set(recipe.data.sources, set_up_recipe(recipe), "first")
    rows = load_set(given, streaming=streaming)
    reader, meant = given.sources[0].source.reader, meant_nulls(rows.features)
    found = [reader.read(meant(row) if meant else row, 0)[0].messages[1].tool_calls[0] for row in rows]
    checked = [reader.read(raw.row, 0)[0].messages[1].tool_calls[0] for raw in raw_rows(path, "json")]
    expected = [{"type": "function", "function": {"name": "f", "arguments": one}} for one in all_of_them]
    assert found == checked == expected


@pytest.mark.parametrize("second", [{"prompt": "go", "completion": "ok"}, {"text": "go"}])
def test_rows_of_several_shapes_in_one_file_are_told_apart(tmp_path, second):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "go"}]}) + "\n" + json.dumps(second))
    recipe = load_recipe(None, [f"data={path}", "model=m"])
    with pytest.raises(ConflictError, match="The rows differ in shape: write each shape to a file of its own"):
        inspect_set(recipe.data.sources, set_up_recipe(recipe), "first")


def test_a_header_that_names_a_column_twice_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,completion\ngo,a,b\n")
    with pytest.raises(DataError, match=r'rows\.csv: broken CSV: the header names the column "completion" twice'):
        list(scan(local_files(str(path))))
    assert [raw.fault.id for raw in raw_rows(path, "csv") if raw.fault] == ["broken-csv"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('text\nfirst\n"second\nthird\nfourth\n', r"rows\.csv row 1"),
        ('text\nfirst\n"second', r"rows\.csv row 1"),
        ('a,b\n1,2\n3,"four\n5,6\n', r"rows\.csv row 1"),
        ('a,b\n"1,2\n5,6\n\n', r"rows\.csv row 0"),
        ('"text\nfirst\nsecond\n', r"rows\.csv"),
    ],
)
def test_a_quote_that_is_not_closed_does_not_swallow_the_rows_behind_it(tmp_path, text, where):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=where + ": broken CSV: a quote opens a cell here and is not closed"):
        list(scan(local_files(str(path))))
    assert [raw.fault.id for raw in raw_rows(path, "csv") if raw.fault] == ["broken-csv"]


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n"])
def test_a_cell_in_quotes_may_end_the_file(tmp_path, end):
    path = tmp_path / "rows.csv"
    path.write_bytes(('text\nfirst\n"sec""ond\nline"' + end).encode())
    assert [raw.row for raw in raw_rows(path, "csv")] == [{"text": "first"}, {"text": 'sec"ond\nline'}]


def test_a_column_that_datasets_does_not_know_is_refused_with_how_to_write_it(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"messages": pa.array([[("user", "go")]], pa.map_(pa.string(), pa.string()))}), path)
    recipe = load_recipe(None, [f"data={path}", "model=m"])
    given = inspect_set(recipe.data.sources, set_up_recipe(recipe), "first")
    with pytest.raises(
        DataError, match=r"rows\.parquet: the file cannot be read: Arrow type map.*Write that column as"
    ):
        load_set(given)
