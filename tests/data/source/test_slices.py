"""Slices of local files, in run, check, preview and stream: the rows that `datasets` takes of a split of the hub."""

from __future__ import annotations

import json

import datasets
import pytest
from click.testing import CliRunner

from sftcore import DataError, RowError
from sftcore.cli import cli
from sftcore.config.recipe import load_recipe
from sftcore.config.setup import set_up_recipe
from sftcore.data.rules.numbers import numbers_in, numbers_of
from sftcore.data.source.files import local_files
from sftcore.data.source.load import split_off
from sftcore.data.source.several import inspect_set, load_set
from sftcore.data.source.slices import window_of

COUNT = 37


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """37 rows in one file of each kind, in two files, and in a saved data set; row i is the text `row i`."""
    folder = tmp_path_factory.mktemp("slices")
    rows = [{"text": f"row {i}"} for i in range(COUNT)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "all.jsonl").write_text("".join(lines))
    (folder / "two").mkdir()
    (folder / "two" / "a.jsonl").write_text("".join(lines[:20]))
    (folder / "two" / "b.jsonl").write_text("".join(lines[20:]))
    made = datasets.Dataset.from_list(rows)
    made.to_parquet(str(folder / "all.parquet"))
    made.to_csv(str(folder / "all.csv"))
    made.save_to_disk(str(folder / "saved"))
    return folder


def loaded(path, split, *words, streaming=False):
    recipe = load_recipe(None, ["model=m", f"data={{path: {json.dumps(str(path))}, split: '{split}'}}", *words])
    return load_set(inspect_set(recipe.data.sources, set_up_recipe(recipe), "first"), streaming=streaming)


SLICES = [
    "train[:10]", "train[10:]", "train[5:9]", "train[-10:]", "train[:-30]", "train[-9:-2]", "train[10%:]",
    "train[:10%]", "train[33%:66%]", "train[-20%:]", "train[:-20%]", "train[0:50%]", "train[:100]", "train[:]",
    "validation[:3]", "train[:1_0]", "train[50%:100%]",
]  # fmt: skip


@pytest.mark.parametrize("split", SLICES)
def test_a_slice_takes_the_rows_that_datasets_takes_of_a_split(files, split):
    name = split.partition("[")[0]
    (wanted,) = datasets.ReadInstruction.from_spec(split).to_absolute({name: COUNT})
    found = window_of(split, local_files(str(files / "all.jsonl")), "here")
    stop = COUNT if wanted.to is None else wanted.to
    assert list(numbers_in(found, COUNT)) == list(range(wanted.from_ or 0, min(stop, COUNT)))


@pytest.mark.parametrize("name", ["all.jsonl", "all.parquet", "all.csv", "two", "saved"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("split", ["train[18:22]", "train[-19:-15]"])
def test_every_kind_of_file_is_sliced_over_all_its_files(files, name, streaming, split):
    rows = loaded(files / name, split, streaming=streaming)
    assert [row["text"] for row in rows] == [f"row {i}" for i in range(18, 22)]
    assert list(numbers_of(rows)[:4]) == [18, 19, 20, 21]


def test_rows_keep_their_numbers_when_they_are_limited_and_split_off(files):
    rows = loaded(files / "all.jsonl", "train[10:]", "data.rows=8")
    train, held = split_off(rows, 0.25, seed=1)
    for part in (train, held):
        assert [f"row {number}" for number in numbers_of(part)] == part["text"]
    assert len(held) == 2


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("train[40:]", "there is no row 40"),
        ("train[5:5]", "takes no row"),
        ("train[9:3]", "takes no row"),
        ("train[:0%]", "takes none of the 37 rows"),
        ("train[5]", "is not a slice"),
        ("train[:10", "is not a slice"),
        ("train[:10]+train[20:]", "is not a slice"),
        ("train[::2]", "is not a slice"),
        ("train[5:50%]", "a number and a percentage"),
        ("train[:101%]", "at most 100%"),
    ],
)
def test_what_is_no_slice_or_takes_no_row_is_refused(files, split, said):
    with pytest.raises(DataError, match=said):
        loaded(files / "all.jsonl", split)


def test_a_name_of_a_split_that_nobody_reads_is_said(files):
    with pytest.warns(UserWarning, match='split "validation" and config "en" are not read'):
        assert len(loaded(files / "all.jsonl", "validation", "data.config=en")) == COUNT


def test_a_faulty_row_outside_the_slice_is_not_read_and_one_inside_has_its_own_number(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": None if i in (0, 6) else f"row {i}"}) + "\n" for i in range(9)))
    assert len(loaded(path, "train[1:6]")) == 5
    with pytest.raises(RowError, match="row 6: "):
        loaded(path, "train[1:]")


def run(*words):
    result = CliRunner().invoke(cli, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_check_preview_and_explain_mean_the_same_rows(tmp_path, files, model_folder):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": "" if i in (0, 6) else f"row {i}"}) + "\n" for i in range(9)))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {model_folder}\ndata: {{path: {path}, split: 'train[2:8]', rows: 5}}\n")
    checked = run("check", str(recipe))
    assert "5 read" in checked
    assert "row 6 (line 7)" in checked
    assert "row 0" not in checked
    assert "«ow 2<" in run("preview", str(recipe), "--row", "0")
    assert "split train[2:8], the first 5 rows" in run("explain", str(recipe))
    recipe.write_text(f"data: {{path: {files / 'two'}, split: 'train[18:22]'}}\nmodel: {model_folder}\n")
    assert "4 read" in run("check", str(recipe))
