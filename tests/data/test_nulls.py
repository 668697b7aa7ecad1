"""A null that somebody wrote is trained as it was written; one that Arrow filled in is not."""

from __future__ import annotations

import json

import datasets
import pytest
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset

from tests.conftest import make_tokenizer
from tests.data.test_pipeline import preparation
from tests.plugins.formats.rendered import TEMPLATE, told

ARGUMENTS = [{"x": None, "y": 1}, {"z": "a"}, {"q": [None, {"r": None}]}]
SCHEMA = {
    "name": "f",
    "parameters": {"type": "object", "properties": {"x": {"type": ["string", "null"], "default": None}}},
}


def conversation(arguments: dict) -> list[dict]:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}, "id": None}
    answer = {"role": "assistant", "content": "", "tool_calls": [call], "name": None}
    return [{"role": "user", "content": "go"}, answer]


def expected(arguments: dict, tools: bool = False) -> str:
    call = json.dumps({"name": "f", "arguments": arguments})
    schema = json.dumps({"type": "function", "function": SCHEMA}) + "\n" if tools else ""
    turns = told(("user", "go"), ("assistant", f"<tool_call>{call}</tool_call>"))
    return schema + turns.replace("«", "").replace("»", "")


def texts(rows, **settings) -> list[str]:
    tokenizer = make_tokenizer(template=TEMPLATE)
    data = preparation(tokenizer, assistant_only_loss=True, dataset_cache=False, **settings)
    return [tokenizer.decode(row["input_ids"]) for row in data.prepare(rows, "train")]


def columns() -> dict[str, object]:
    """Where JSON may stand in the features of a conversation."""
    anything = datasets.Json()
    function = {"name": Value("string"), "arguments": anything}
    role = {"role": Value("string"), "content": Value("string")}
    return {
        "messages": anything, "each": List(anything), "calls": List({**role, "tool_calls": List(anything)}),
        "arguments": List({**role, "tool_calls": List({"type": Value("string"), "function": function})}),
    }  # fmt: skip


@pytest.mark.parametrize("where", ["messages", "each", "calls", "arguments"])
@pytest.mark.parametrize("stream", [False, True])
def test_nulls_of_a_json_column_stay(where, stream):
    features = Features({"messages": columns()[where], "tools": List(datasets.Json())})
    rows = [{"messages": conversation(one), "tools": [SCHEMA]} for one in ARGUMENTS]
    if where in ("calls", "arguments"):
        rows[0]["messages"][0]["tool_calls"] = None
        for row in rows:
            row["messages"][1].pop("name")
    if where == "arguments":
        for row in rows:
            row["messages"][1]["tool_calls"][0].pop("id")
    dataset = Dataset.from_list(rows, features=features)
    found = texts(dataset.to_iterable_dataset() if stream else dataset)
    assert found == [expected(one, tools=True) for one in ARGUMENTS]


def test_nulls_of_a_file_whose_objects_differ_stay(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": conversation(one)} for one in ARGUMENTS] + [{"messages": conversation({})[:1]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert texts(found.select(range(3)), dataset_num_proc=2) == [expected(one) for one in ARGUMENTS]


def test_nulls_that_arrow_filled_in_are_left_out():
    rows = Dataset.from_list([{"messages": conversation(one)} for one in ({"x": 1}, {"y": 2})])
    assert texts(rows) == [expected({"x": 1}), expected({"y": 2})]


def test_nulls_of_json_text_stay():
    rows = [{"messages": json.dumps(conversation(one)), "tools": json.dumps([SCHEMA])} for one in ARGUMENTS]
    assert texts(Dataset.from_list(rows)) == [expected(one, tools=True) for one in ARGUMENTS]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    assert texts(stream) == [expected(one, tools=True) for one in ARGUMENTS]
