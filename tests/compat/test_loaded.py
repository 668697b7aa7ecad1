"""Local files named as TRL's scripts name them: the rows are those of `sftcore train`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pytest

from sftcore import DataError, DatasetConfig, DatasetMixtureConfig, get_dataset
from sftcore.compat.script_arguments import get_sources
from sftcore.config.recipe import load_recipe
from sftcore.config.setup import set_up_recipe
from sftcore.data.source.several import inspect_set, load_set

TABLE = 'prompt,completion\ngo,007\nNA,true\n1.50,null\nnan,x\n"a, b",1e5\nsay,\n'
ROWS = [("go", "007"), ("NA", "true"), ("1.50", "null"), ("nan", "x"), ("a, b", "1e5"), ("say", None)]
LINES = [{"prompt": "go", "completion": str(i)} for i in range(1100)]
LINES += [{"prompt": [{"role": "user", "content": "4"}], "completion": "4", "day": "2024-01-31"}]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of files of every kind, which is the current one."""
    monkeypatch.chdir(tmp_path)
    for name, delimiter in {"a.csv": ",", "b.tsv": "\t", "semicolons.csv": ";"}.items():
        Path(name).write_text(TABLE.replace('"a, b"', "\0").replace(",", delimiter).replace("\0", '"a, b"'))
    with gzip.open("a.csv.gz", "wt") as file:
        file.write(TABLE)
    Path("t.txt").write_text("one\n\n  two\r\nthree\n")
    Path("l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LINES))
    Path("splits").mkdir()
    for name in ("train", "test"):
        Path(f"splits/{name}.csv").write_text(f"prompt,completion\n{name},007\n{name},08\n")
    return tmp_path


def rows_of(streaming, **given):
    (rows,) = get_sources(DatasetMixtureConfig([DatasetConfig(**given)], streaming=streaming)).values()
    return [dict(row) for row in rows]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a.csv", "b.tsv", "semicolons.csv", "a.csv.gz", "t.txt", "l.jsonl"])
def test_the_rows_of_a_local_file_are_those_of_a_recipe(name, streaming, here):
    recipe = load_recipe(None, [f"data={name}", "model=m", "completion_only_loss=false"])
    found = rows_of(streaming, path=name)
    if "csv" in name or "tsv" in name:
        assert found == [{"prompt": prompt, "completion": completion} for prompt, completion in ROWS]
        return
    of_recipe = load_set(inspect_set(recipe.data.sources, set_up_recipe(recipe), "first"), streaming=streaming)
    assert found == [dict(row) for row in of_recipe]
    assert [row["text"] for row in found] == ["one", "  two", "three"] if name == "t.txt" else found[-1] == LINES[-1]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ({"path": "splits"}, ["train"] * 2),
        ({"path": "splits", "split": "test[:1]"}, ["test"]),
        ({"path": "splits", "split": "train[50%:]+test"}, ["train", "test", "test"]),
        ({"path": "splits", "split": "all"}, ["train", "train", "test", "test"]),
        ({"path": "csv", "data_files": "splits/test.csv"}, ["test"] * 2),
        ({"path": "csv", "data_files": {"dev": ["splits/*.csv"]}, "split": "dev"}, ["test", "test", "train", "train"]),
        ({"path": ".", "data_files": "splits/train.csv"}, ["train"] * 2),
        ({"path": "splits/t*.csv"}, ["test", "test", "train", "train"]),
    ],
)
def test_splits_and_builders_choose_the_rows_that_datasets_chooses(given, prompts, streaming, here):
    found = rows_of(streaming, **given)
    assert [row["prompt"] for row in found] == prompts
    assert {row["completion"] for row in found} <= {"007", "08"}  # datasets reads 7 and 8
    if "*" not in given["path"] and given["path"] != ".":
        theirs = datasets.load_dataset(**{"split": "train", **given})
        assert theirs["prompt"][:] == prompts


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"path": "a.csv", "split": "test"}, r'a\.csv: there is no split "test"\. The splits are: train'),
        ({"path": "splits", "split": "dev[:1]"}, 'there is no split "dev". The splits are: train, test'),
        ({"path": "a.csv", "columns": ["answer"]}, 'there is no column "answer". The columns are: prompt, completion'),
        ({"path": "none.csv"}, "no such file"),
        ({"path": "csv", "data_files": "none.csv"}, "csv: the data set cannot be loaded"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_not_there_is_named(given, said, streaming, here):
    with pytest.raises(DataError, match=said):
        rows_of(streaming, **given)


def test_streams_of_several_files_are_read_one_after_another_with_their_own_types(here):
    config = DatasetMixtureConfig([DatasetConfig("a.csv"), DatasetConfig("l.jsonl")], streaming=True)
    (mixture,) = get_sources(config).values()
    assert [len(list(one.dataset)) for one in mixture.sources] == [len(ROWS), len(LINES)]
    assert list(mixture.sources[1].dataset)[-1] == LINES[-1]


def test_a_table_of_numbers_keeps_them_for_scripts_of_ones_own(here):
    found = get_dataset(DatasetMixtureConfig([DatasetConfig("a.csv")], test_split_size=2))
    assert {name: len(rows) for name, rows in found.items()} == {"train": 4, "test": 2}
    assert "007" in [*found["train"]["completion"], *found["test"]["completion"]]
