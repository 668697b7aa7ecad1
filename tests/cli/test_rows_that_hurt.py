"""`sftcore rows` and `sftcore check --rows`, on a run from a recipe: each row with file, line, fate and text."""

from __future__ import annotations

import json
import sys

import pytest

from sftcore.cli import main
from sftcore.data.account.table import read_table

HOSTILE = "\x1b]0;owned\x07\x1b[31m‮ world"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_folder):
    """A run of three epochs over two files with blank lines, a double, a long row, an empty one and escape codes."""
    folder = tmp_path_factory.mktemp("rows")
    rows = [
        {"prompt": "say 0:", "completion": HOSTILE},
        {"prompt": "say 1:", "completion": " hello world" * 30},
        {"prompt": "say 2:", "completion": " hello"},
        {"prompt": "say 2:", "completion": " hello"},
        {"prompt": "say 3:" * 20, "completion": " hello"},
        {"prompt": "say 4:", "completion": " world"},
    ]
    lines = [json.dumps(row) for row in rows]
    (folder / "a.jsonl").write_text(f"{lines[0]}\n\n{lines[1]}\n{lines[2]}\n")
    (folder / "b.jsonl").write_text(f"\n{lines[3]}\n{lines[4]}\n{lines[5]}\n")
    return folder


def words(folder, model_folder, *more):
    return [
        f"model={model_folder}", f"data=[{folder / 'a.jsonl'}, {folder / 'b.jsonl'}]", "max_length=32", "use_cpu=true",
        "report_to=none", *more,
    ]  # fmt: skip


def called(monkeypatch, capsys, *argv):
    monkeypatch.setattr(sys, "argv", ["sftcore", *argv])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    return ended.value.code or 0, told.out, told.err


@pytest.fixture
def trained(folder, model_folder, monkeypatch, capsys):
    out = folder / "out"
    if not out.exists():
        more = (f"output_dir={out}", "num_train_epochs=3", "logging_steps=1", "save_strategy=no")
        code, _, err = called(monkeypatch, capsys, "train", *words(folder, model_folder, *more))
        assert code == 0, err
    return out


def test_each_row_is_listed_with_file_line_and_fate(trained, folder):
    table, facts = read_table(trained)
    rows = table.to_pylist()
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [(row["file"].rpartition("/")[2], row["file_row"], row["line"]) for row in rows] == [
        ("a.jsonl", 0, 1), ("a.jsonl", 1, 3), ("a.jsonl", 2, 4),
        ("b.jsonl", 0, 2), ("b.jsonl", 1, 3), ("b.jsonl", 2, 4),
    ]  # fmt: skip
    assert [row["outcome"] for row in rows] == ["kept", "cut", "kept", "kept", "dropped", "kept"]
    assert rows[1]["tokens"] - rows[1]["tokens_cut"] == 32
    assert rows[4]["reason"] == "no supervised token left after truncation"
    assert [row["same_as"] for row in rows] == [None, None, None, 2, None, None]
    assert [len(row["loss"]) for row in rows] == [3, 3, 3, 3, 0, 3]
    assert facts == {"schema": 1, "loss": "nll", "epochs": [1, 2, 3], "of": "run"}


def test_a_check_lists_the_same_without_a_run(trained, folder, model_folder, monkeypatch, capsys):
    listed = folder / "checked.parquet"
    argv = ["check", str(_recipe(folder, model_folder)), "--rows", str(listed)]
    _, _, err = called(monkeypatch, capsys, *argv)
    assert "6 rows are listed" in err
    run, check = (read_table(one)[0].to_pylist() for one in (trained, listed))
    compared = (
        "set",
        "file",
        "row",
        "file_row",
        "line",
        "part",
        "outcome",
        "tokens",
        "tokens_cut",
        "supervised",
        "same_as",
    )
    for one, other in zip(run, check, strict=True):
        assert {name: one[name] for name in compared} == {name: other[name] for name in compared}
    assert not any(row["loss"] for row in check)


def _recipe(folder, model_folder):
    path = folder / "recipe.yaml"
    files = json.dumps([str(folder / "a.jsonl"), str(folder / "b.jsonl")])
    path.write_text(
        f"model: {model_folder}\ndata: {files}\nmax_length: 32\nuse_cpu: true\noutput_dir: {folder / 'x'}\n"
    )
    return path


def test_broken_and_refused_rows_are_listed_by_a_check(tmp_path, model_folder, monkeypatch, capsys):
    data = tmp_path / "bad.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n{"prompt": 3, "completion": null}\n')
    argv = ["check", str(data), "--model", str(model_folder), "--rows", str(tmp_path / "rows.parquet")]
    code, _, _ = called(monkeypatch, capsys, *argv)
    rows = read_table(tmp_path / "rows.parquet")[0].to_pylist()
    assert code == 1
    assert [(row["outcome"], row["line"]) for row in rows] in (
        [("kept", 1), ("broken", 2), ("refused", 3)],
        [("broken", 2), ("kept", 1), ("refused", 3)],
    )
    assert rows[-1]["reason"]


def test_rows_are_shown_with_their_text_and_escape_codes_as_text(trained, monkeypatch, capsys):
    code, out, _ = called(monkeypatch, capsys, "rows", str(trained))
    assert code == 0
    assert "a.jsonl row 0 (line 1): loss" in out
    assert "b.jsonl row 2 (line 4): loss" in out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "‮" not in out
    assert "owned" in out


def test_the_json_holds_the_rows_themselves(trained, monkeypatch, capsys):
    _, out, _ = called(monkeypatch, capsys, "rows", str(trained), "--what", "cut", "--json")
    found = json.loads(out)
    (row,) = found["rows"]
    assert json.loads(row["text"]) == {"prompt": "say 1:", "completion": " hello world" * 30}
    assert (row["file_row"], row["line"], found["count"], found["loss"]) == (1, 3, 1, "nll")


def test_doubles_and_dropped_rows_are_explained(trained, monkeypatch, capsys):
    assert "the same as row 2" in called(monkeypatch, capsys, "rows", str(trained), "--what", "duplicates")[1]
    out = called(monkeypatch, capsys, "rows", str(trained), "--what", "dropped", "--source", "b.jsonl")[1]
    assert "b.jsonl row 1 (line 3): dropped, no supervised token left after truncation" in out


def test_a_file_that_has_changed_is_said(trained, folder, monkeypatch, capsys):
    before = (folder / "a.jsonl").read_text()
    (folder / "a.jsonl").write_text(f"{before}\n")
    try:
        err = called(monkeypatch, capsys, "rows", str(trained), "--worst", "9")[2]
    finally:
        (folder / "a.jsonl").write_text(before)
    assert "a.jsonl has changed since the run" in err


def test_a_folder_without_a_list_is_refused(tmp_path, monkeypatch, capsys):
    code, _, err = called(monkeypatch, capsys, "rows", str(tmp_path))
    assert code == 1
    assert "there is no rows.parquet" in err
