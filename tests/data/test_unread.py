"""Nothing is left unread in silence: columns, keys of messages and keys of parts are named once, with an example."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset, IterableDataset

from sftcore.core.types import Example
from sftcore.data.format import RowReader
from sftcore.data.ledger import Ledger
from sftcore.data.unread import unread
from tests import commands
from tests.conftest import make_tokenizer
from tests.data.test_pipeline import preparation

TURNS = [{"role": "user", "content": "say hello"}, {"role": "assistant", "content": "hello"}]


def said_of(rows, **options) -> list[str]:
    data = preparation(make_tokenizer(), **options)
    data.prepare(rows if isinstance(rows, IterableDataset) else Dataset.from_list(rows), "train")
    return [note for note in data.notes if "not read" in note]


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"messages": TURNS, "id": 17, "source": "web", "none": None}, 'columns "id" (17), "source" (\'web\')'),
        ({"messages": TURNS, "tool_defs": "[]", "tools": None}, "column \"tool_defs\" ('[]')"),
        ({"text": "a b", "label": 0}, 'column "label" (0)'),
        ({"prompt": "a", "completion": "b", "context": "c"}, "column \"context\" ('c')"),
        ({"instruction": "a", "input": "", "output": "b", "score": 0.5}, 'column "score" (0.5)'),
        ({"conversations": [{"from": "human", "value": "a"}], "n": [1], "empty": ""}, 'column "n" ([1])'),
        ({"input_ids": [5, 6], "length": 2}, 'column "length" (2)'),
    ],
)  # fmt: skip
def test_columns_that_are_not_read_are_named_with_an_example(row, unread):
    assert said_of([row] * 3) == [f"train: not read, each with an example: the {unread}"]
    stream = IterableDataset.from_generator(lambda: iter([row] * 3))
    assert said_of(stream) == said_of([row] * 3)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS, "tools": None, "system": "be", "chat_template_kwargs": {"a": 1}},
        {"instruction": "a", "input": "b", "output": "c", "system": "d", "history": [["e", "f"]]},
        {"input_ids": [5, 6], "labels": [5, 6], "weights": [1.0, 1.0]},
        {"text": "a b", "empty": [], "none": None},
    ],
)
def test_rows_that_are_read_whole_need_no_word(row):
    assert said_of([row] * 3) == []


def test_a_column_that_is_filled_late_is_named_and_one_of_a_function_is_the_users_choice():
    rows = [{"text": "a b", "late": None}] * 50 + [{"text": "a b", "late": "here"}]
    assert said_of(rows) == ["train: not read, each with an example: the column \"late\" ('here')"]
    assert said_of(rows, formatting_func=lambda row: row["text"]) == []


@pytest.mark.parametrize(
    "reads",
    [
        lambda row: row["a"] + row["b"], lambda row: "{a}{b}".format(**row), lambda row: "".join(row.values()),
        lambda row: "".join(row[key] for key in row), lambda row: "".join(value for _, value in row.items()),
        lambda row: row.get("a") + dict(row).pop("b"), lambda row: "".join({**row}.values()),
        lambda row: "x" if "a" in row and "b" in list(row.keys()) else "",
    ],
)  # fmt: skip
def test_whatever_way_a_strangers_format_asks_for_columns_counts_as_reading(reads):
    reader = RowReader("format", lambda row: Example(text=reads(row)), "train")
    assert unread(reader, [{"a": "1", "b": "2"}]) == {}
    assert unread(RowReader("format", lambda row: Example(text=row["a"]), "train"), [{"a": "1", "b": "2"}]) == {
        "b": "2"
    }


def test_a_format_that_fails_says_so_itself():
    def fails(row):
        raise KeyError("c")

    assert unread(RowReader("format", fails, "train"), [{"a": "1"}]) == {}


# --- Keys of messages and parts
def keyed(number: int) -> dict:
    part = {"type": "text", "text": "hello", "cite": f"p. {number}"}
    asked = {"role": "user", "content": [{**part, "cite": None}], "id": number}
    return {"messages": [asked, {"role": "assistant", "content": [part], "id": None}]}


@pytest.mark.parametrize("num_proc", [None, 2])
def test_keys_are_named_once_with_the_first_example(num_proc):
    data = preparation(make_tokenizer(), assistant_only_loss=True, dataset_num_proc=num_proc, dataset_cache=False)
    data.prepare(Dataset.from_list([keyed(number) for number in range(7, 2107)]), "train")
    assert dict(data.ledgers[0].notes) == {
        'the key "id" of messages is not read, for example 7': 2100,
        'the key "cite" of "text" parts is not read, for example \'p. 7\'': 2100,
    }


@pytest.mark.slow
def test_the_plan_check_and_preview_name_what_is_not_read(tmp_path, model_folder, write):
    rows = [{**keyed(number), "source": "web"} for number in range(3)]
    data = write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", str(model_folder), "--data", str(data)]
    planned = commands.sftcore("train", *words, "--dry-run", "use_cpu=true", f"output_dir={tmp_path / 'out'}").stderr
    checked = commands.sftcore("check", *words).stdout
    shown = commands.sftcore("preview", str(data), "--model", str(model_folder)).stdout
    for text in (planned, checked, shown):
        for said in ('"source"', "'web'", 'he key "id" of messages is not read, for example 0', '"cite"'):
            assert text.count(said) == 1, text


def test_examples_of_one_note_from_several_processes_are_one():
    import pyarrow as pa

    row = {"_row": 0, "_tokens_in": 1, "_tokens_cut": 0, "_supervised": 1, "_dropped": None, "_digest": 0}
    said = [
        'the key "id" of messages is not read, for example 1',
        'the key "id" of messages is not read, for example 9',
    ]
    table = pa.Table.from_pylist([{**row, "_row": i, "_notes": [note, "other"]} for i, note in enumerate(said)])
    table = table.set_column(4, "_dropped", pa.nulls(2, pa.string()))
    assert Ledger.of(table, name="train", format="chat").notes == {said[0]: 2, "other": 2}
