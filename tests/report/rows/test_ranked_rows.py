"""The rows that hurt, found in a list whose losses are written out, and refused in words where there is none."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftcore.core.errors import DataError
from sftcore.data.account.table import read_table, same_as, table_of, write_table
from sftcore.report.rows.ranked import ranked

LOSSES = {
    "learnt": [2.0, 0.5, 0.1],
    "never": [3.0, 2.9, 2.8],
    "late": [2.0, 1.9, 0.1],
    "jumps": [1.0, 0.2, 1.6],
    "broken": [math.nan, 1.0, 1.0],
    "once": [1.5],
}


@pytest.fixture
def listed(tmp_path):
    """A list of seven rows in two files, the last of which was dropped; `row` counts through both."""
    losses = [*LOSSES.values(), []]
    columns = {
        "set": "train",
        "source": ["a"] * 4 + ["b"] * 3,
        "file": ["data/a.jsonl"] * 4 + ["data/b.jsonl"] * 3,
        "row": np.arange(7),
        "file_row": [0, 1, 2, 3, 0, 1, 2],
        "line": [1, 2, 4, 5, 1, 2, 3],
        "part": np.zeros(7, np.int32),
        "outcome": ["kept", "cut", "kept", "cut", "kept", "kept", "dropped"],
        "reason": [None] * 6 + ["no supervised token"],
        "tokens": [9, 12, 9, 30, 9, 9, 9],
        "tokens_cut": [0, 3, 0, 21, 0, 0, 0],
        "same_as": [None, None, None, None, 0, None, None],
        "epochs": pa.array([list(range(1, 1 + len(one))) for one in losses], pa.list_(pa.int32())),
        "loss": pa.array(losses, pa.list_(pa.float32())),
    }
    write_table(table_of(columns, 7), tmp_path / "rows.parquet", {"loss": "nll", "epochs": [1, 2, 3], "of": "run"})
    return tmp_path


def names(found):
    return [[*LOSSES, "dropped"][one.row] for one in found.rows]


def test_a_high_loss_of_few_tokens_says_less(tmp_path):
    columns = {
        "set": "train",
        "row": [0, 1, 2],
        "epochs": pa.array([[1], [1], [1]], pa.list_(pa.int32())),
        "loss": pa.array([[4.0], [3.5], [0.5]], pa.list_(pa.float32())),
        "loss_tokens": pa.array([[1], [40], [40]], pa.list_(pa.int32())),
    }
    write_table(table_of(columns, 3), tmp_path / "rows.parquet", {"loss": "nll", "epochs": [1]})
    assert [one.row for one in ranked(tmp_path, "worst", worst=3).rows] == [1, 0, 2]


def test_what_stays_highest_comes_first_and_nan_before_all(listed):
    found = ranked(listed, "worst", worst=3)
    assert names(found) == ["broken", "never", "once"]
    assert (found.count, found.listed, found.loss, found.epochs) == (6, 7, "nll", (1, 2, 3))
    never = found.rows[1]
    assert (never.mean, never.spread) == pytest.approx((2.9, math.sqrt(0.02 / 3)), abs=1e-6)


def test_a_row_that_falls_in_the_last_epoch_is_later_than_one_that_falls_in_the_first(listed):
    order = names(ranked(listed, "late", worst=9))
    assert order.index("late") < order.index("learnt")
    assert "jumps" not in order  # it rises in the end
    assert "once" not in order


def test_rows_that_rise_are_ranked_by_how_far(listed):
    found = ranked(listed, "jumps", worst=9)
    assert names(found) == ["jumps"]
    assert found.rows[0].rise == pytest.approx(1.4)


def test_what_became_of_rows_is_ranked_without_losses(listed):
    assert names(ranked(listed, "cut", worst=9)) == ["jumps", "never"]
    assert names(ranked(listed, "dropped", worst=9)) == ["dropped"]
    (double,) = ranked(listed, "duplicates", worst=9).rows
    assert double.same_as == ("a", 0)


@pytest.mark.parametrize("source", ["b", "b.jsonl", "data/b.jsonl"])
def test_a_source_is_named_by_name_or_file(listed, source):
    assert {one.source for one in ranked(listed, "worst", worst=9, source=source).rows} == {"b"}


def test_an_unknown_source_is_answered_with_the_nearest(listed):
    with pytest.raises(DataError, match=r'Did you mean "data/b\.jsonl"'):
        ranked(listed, "worst", worst=9, source="data/c.jsonl")


def test_numbers_that_json_does_not_have_are_null(listed):
    text = json.dumps(ranked(listed, "worst", worst=1).rows[0].as_dict(), allow_nan=False)
    assert json.loads(text)["loss"] == [None, 1.0, 1.0]


def test_a_list_without_losses_says_so(tmp_path):
    write_table(table_of({"set": "train"}, 2), tmp_path / "rows.parquet", {"loss": None, "epochs": []})
    with pytest.raises(DataError, match="has no losses of rows"):
        ranked(tmp_path / "rows.parquet", "worst", worst=1)
    assert ranked(tmp_path, "cut", worst=1).rows == ()


def test_one_epoch_shows_no_fall(tmp_path):
    write_table(table_of({"set": "train"}, 2), tmp_path / "rows.parquet", {"loss": "nll", "epochs": [1]})
    with pytest.raises(DataError, match="compares epochs, and there is one"):
        ranked(tmp_path, "late", worst=1)


@pytest.mark.parametrize("content", ["nothing", "text", "another table", "a newer schema"])
def test_what_is_not_a_list_is_refused_in_words(tmp_path, content):
    path = tmp_path / "rows.parquet"
    if content == "text":
        path.write_text("rows\n")
    elif content == "another table":
        pq.write_table(pa.table({"a": [1]}), path)
    elif content == "a newer schema":
        write_table(table_of({}, 1), path, {})
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({"sftcore": '{"schema": 99}'}), path)
    with pytest.raises(DataError, match=r"rows\.parquet|\.jsonl") as raised:
        read_table(path)
    assert "\n" not in str(raised.value)


def test_the_first_of_equal_rows_is_not_the_same_as_itself():
    assert same_as([7, 0, 3, 7, 0, 7]).to_pylist() == [None, None, None, 0, None, 0]
