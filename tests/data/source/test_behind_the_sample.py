"""Rows behind the first thousand, by which a file's reader is chosen: they too come out as they were written."""

from __future__ import annotations

import json

import datasets
import pytest

from sftcore.config.recipe import load_recipe
from sftcore.data.nulls import meant_nulls
from sftcore.data.source import load as loading
from sftcore.data.source.files import local_files
from sftcore.data.source.load import Source, load
from sftcore.data.source.made import dataset_of
from sftcore.rows.columns import without_nulls
from tests.data.source.test_as_it_is import loaded

FIRST = {
    "text": "one", "when": "today", "number": 1, "share": 0.5, "flag": True, "nothing": None, "none": [],
    "meta": {"a": 1}, "calls": [{"function": {"name": "f", "arguments": {"x": 1.5}}}],
    "answers": [{"name": "f", "arguments": {"x": 1}}],
}  # fmt: skip


def calling(**arguments):
    return {"calls": [{"function": {"name": "f", "arguments": arguments}}]}


LATE = {
    "a null in arguments": [calling(x=None)],
    "a null in arguments that lie higher": [{"answers": [{"name": "f", "arguments": {"x": None}}]}],
    "no argument": [calling()],
    "another argument": [calling(y="a")],
    "a whole number among others in arguments": [calling(x=3)],
    "a null in a new column": [{"new": {"a": {"b": {"c": None}}}}, {"new": {"a": {"b": {"c": 1}}}}],
    "a null first in a new column": [{"new": None}, {"new": "a"}],
    "other types in a new column": [{"new": 1}, {"new": "a"}],
    "a date in a new column": [{"new": "2024-01-31"}],
    "a date where nothing stood": [{"nothing": "2024-01-31 10:00:00"}],
    "a date in a list where nothing stood": [{"none": ["2024-01-31T10:00:00Z"]}],
    "mappings that differ where nothing stood": [{"none": [{"a": 1}]}, {"none": [{"b": None}]}],
    "a list where texts stood": [{"text": ["a"]}, {"text": "4"}, {"text": "null"}, {"text": '{"a": 1}'}],
    "a number where texts stood": [{"when": 4}, {"when": "4"}],
    "a text where numbers stood": [{"number": "x"}, {"share": "x"}],
    "a fraction where whole numbers stood": [{"number": 1.5}],
    "a number of 21 digits": [{"number": 2**70}, calling(x=2**70)],
    "a number where flags stood": [{"flag": 1}],
    "another key": [{"meta": {"a": 1, "b": {"c": {"d": None}}}}],
    "a number of many digits": [calling(x=0.1234567890123456), calling(x=48.8566, y=5e-324)],
}


@pytest.fixture
def small(monkeypatch):
    """A sample of three rows instead of a thousand."""
    monkeypatch.setattr(loading, "SAMPLE", 3)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", ["jsonl", "json"])
@pytest.mark.parametrize("name", LATE)
def test_what_first_stands_behind_the_sample_is_as_it_was_written(name, ending, streaming, small, tmp_path):
    rows = [FIRST] * 4 + [{**FIRST, **late} for late in LATE[name]] + [FIRST]
    path = tmp_path / f"d.{ending}"
    path.write_text(json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    found = loaded(path, streaming=streaming)
    assert [json.dumps(without_top(row), sort_keys=True) for row in found] == [
        json.dumps(without_top(row), sort_keys=True) for row in rows
    ]


def without_top(row):
    return {key: value for key, value in row.items() if value is not None}


def test_a_null_in_arguments_behind_the_sample_is_told_from_a_filling(small, tmp_path):
    rows = [FIRST] * 4 + [{**FIRST, **calling(x=None), "answers": [{"name": "f", "arguments": {"x": None}}]}]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = local_files(str(path))
    recipe = load_recipe(None, [f"data={path}", "model=m"])
    for dataset in (dataset_of(files), load(Source(files.label, files), recipe.data, "train")):
        found = without_nulls(meant_nulls(dataset.features)(dataset[4]))
        assert {name: found[name] for name in ("calls", "answers")} == {
            name: rows[4][name] for name in ("calls", "answers")
        }


def test_texts_that_are_times_in_one_block_alone_stay_texts(small, tmp_path):
    """Arrow takes each 10 MB of a file on their own, and would write these as a time is written."""
    rows = [{"text": "x" * 100_000, "day": "some day"}] * 105
    rows += [{"text": "x" * 100_000, "day": "2024-01-31T10:00:00"}] * 105
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {row["day"] for row in loaded(path)} == {"some day", "2024-01-31T10:00:00"}


def test_rows_that_are_alike_are_read_by_arrow(small, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "dataset_of", None)
    path = tmp_path / "d.jsonl"
    path.write_text((json.dumps({**FIRST, **calling(x=1.5)}) + "\n") * 9)
    assert loaded(path) == [FIRST] * 9


VALUES = ["4", "null", "true", '{"a": 1}', "NaN", [1, {"x": 0.1234567890123456}], {"x": 2**70, "y": None}, None, 3.3]


@pytest.mark.parametrize(
    "changed",
    [
        lambda rows: rows,
        lambda rows: rows.select(range(len(rows))),
        lambda rows: datasets.concatenate_datasets([rows.select([0, 1]), rows.select(range(2, len(rows)))]),
        lambda rows: rows.to_iterable_dataset(),
        lambda rows: rows.train_test_split(1, shuffle=False)["train"],
    ],
)
def test_values_of_any_kind_in_one_column_come_back_as_they_were(changed, tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"p": value}) + "\n" for value in VALUES))
    found = [row["p"] for row in changed(dataset_of(local_files(str(path))))]
    assert len(found) >= len(VALUES) - 1
    assert found == VALUES[: len(found)]
