"""Local files on the command line: found, sampled and refused before anything heavy is imported."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

from sftcore import DataError, RowError
from sftcore.config.recipe import load_recipe
from sftcore.config.setup import set_up_recipe
from sftcore.data.source.files import first_rows, local_files, scan
from sftcore.data.source.load import inspect, load, split_off
from tests.conftest import alpaca_rows
from tests.data.test_pipeline import preparation


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def looked_at(path, *overrides):
    recipe = load_recipe(None, [f"data={path}", "model=m", *overrides])
    return inspect(recipe.data.train, set_up_recipe(recipe)), recipe


def test_every_type_gives_the_same_rows(tmp_path, write):
    rows = alpaca_rows(3)
    dataset = Dataset.from_list(rows)
    dataset.to_parquet(tmp_path / "d.parquet")
    dataset.to_csv(tmp_path / "d.csv")
    dataset.to_csv(tmp_path / "d.tsv", sep="\t")
    dataset.save_to_disk(tmp_path / "saved")
    write("d.jsonl", jsonl(rows))
    write("d.json", json.dumps(rows, indent=1))
    for name in ("d.parquet", "d.csv", "d.tsv", "saved", "d.jsonl", "d.json"):
        source, recipe = looked_at(tmp_path / name)
        found = load(source, recipe.data, "train")
        assert [row["output"] for row in found] == [row["output"] for row in rows], name


def test_a_folder_is_read_whole_and_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jsonl").write_text(jsonl(alpaca_rows(2)))
    (tmp_path / "sub" / "b.jsonl").write_text(jsonl(alpaca_rows(3)))
    source, recipe = looked_at(tmp_path)
    assert len(load(source, recipe.data, "train")) == 5


def test_a_hub_id_is_no_file():
    assert local_files("stanfordnlp/imdb") is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("empty.jsonl", "", "the file is empty"),
        ("blank.jsonl", "\n\n", "the file holds no rows"),
        ("list.json", "[]", "the file holds no rows"),
        ("broken.jsonl", '{"text": "a"}\n{"text": \n', "broken.jsonl line 2: broken JSON"),
        ("broken.json", '[\n{"text": "a"},\n{"text" "b"}\n]', "broken.json line 3: broken JSON"),
        ("list.jsonl", '{"text": "a"}\n[1, 2]\n', "list.jsonl row 1: this is list, not a mapping of columns to values"),
        ("null.jsonl", jsonl([{"text": "a"}, {"text": None}]), 'null.jsonl row 1: the column "text" is null'),
        ("mixed.jsonl", jsonl([{"text": "a"}, {"title": "b"}]), 'mixed.jsonl row 1: the column "text" is missing'),
        (
            "chat.jsonl",
            jsonl([{"messages": "hi"}]),
            'chat.jsonl row 0: the column "messages" is a text, not a list of messages',
        ),
        ("odd.jsonl", jsonl([{"foo": "a"}]), 'no installed format recognises the columns "foo"'),
        ("data.doc", "hello", 'files ending in ".doc" cannot be read'),
        ("data.xlsx", "hello", "this is a spreadsheet"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(write, name, text, said):
    path = write(name, text)
    with pytest.raises(DataError) as caught:
        looked_at(path)
    assert said in str(caught.value)


def test_latin_1_is_refused_and_named(tmp_path):
    (tmp_path / "l.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        looked_at(tmp_path / "l.jsonl")


def test_a_missing_file_lists_its_neighbours(write):
    path = write("train.jsonl", "{}")
    with pytest.raises(DataError, match=r"no such file. In .*: train.jsonl"):
        looked_at(path.with_name("trian.jsonl"))


def test_a_pattern_means_all_files_that_match(tmp_path, write):
    for name in ("b.jsonl", "a.jsonl"):
        write(name, jsonl(alpaca_rows(1)))
    assert [path.name for path in local_files(str(tmp_path / "*.jsonl")).paths] == ["a.jsonl", "b.jsonl"]


def test_files_of_different_types_are_refused(write):
    a, b = write("a.jsonl", "{}"), write("b.csv", "x\n1\n")
    with pytest.raises(DataError, match="of different types"):
        local_files([str(a), str(b)])


@pytest.mark.parametrize(
    ("bad", "error", "said"),
    [
        ('{"text": ', DataError, "line 1501: broken JSON"),
        ('{"text": ["a", "list"]}', RowError, 'row 1500: the column "text" holds a list'),
    ],
)
def test_a_fault_behind_the_sample_is_found_with_its_line(write, tokenizer, bad, error, said):
    path = write("long.jsonl", jsonl([{"text": f"row {i}"} for i in range(1500)]) + bad + "\n")
    source, recipe = looked_at(path)
    with pytest.raises(error) as caught:
        preparation(tokenizer).prepare(load(source, recipe.data, "train"), "train")
    assert said in str(caught.value)


def test_a_share_is_held_back_by_the_seed():
    dataset = Dataset.from_list(alpaca_rows(20))
    train, held = split_off(dataset, 0.25, seed=1)
    assert (len(train), len(held)) == (15, 5)
    assert held[:] == split_off(dataset, 0.25, seed=1)[1][:]
    with pytest.raises(DataError, match="cannot be split"):
        split_off(dataset.select([0]), 0.5, seed=1)


@pytest.mark.parametrize("fields", [{}, {"dataset_num_proc": 2}, {"packing": True}])
def test_rows_that_are_held_back_leave_the_others_their_numbers(tokenizer, fields):
    rows = alpaca_rows(40)
    rows[33] = {"instruction": "hello " * 200, "input": "", "output": "cut away"}
    train, held = split_off(Dataset.from_list(rows), 0.25, seed=1)
    data = preparation(tokenizer, 64, **fields)
    data.prepare_all({"train": train, "held": held}, "sets")
    dropped = [row for ledger in data.ledgers for found in ledger.dropped_rows.values() for row in found]
    assert dropped == [33]
    rows[21]["output"] = None
    with pytest.raises(RowError, match="row 21: ") as caught:
        data.prepare_all(dict(enumerate(split_off(Dataset.from_list(rows), 0.25, seed=1))), "sets")
    assert caught.value.row == 21


# --- The real data sets ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "format_name", "rows"),
    [
        ("alpaca_en_demo.json", "alpaca", 999),
        ("identity.json", "alpaca", 91),
        ("glaive_toolcall_en_demo.json", "sharegpt", 300),
    ],
)
def test_auto_picks_the_right_format_of_real_files(shared_data, name, format_name, rows):
    source, recipe = looked_at(shared_data / name)
    assert source.reader.label == f'format "{format_name}"'
    assert len(list(scan(source.files))) == rows
    assert len(load(source, recipe.data, "train")) == rows


def test_gsm8k_gets_the_line_that_maps_its_columns_and_that_line_works(shared_data):
    path = shared_data / "gsm8k_train.jsonl"
    with pytest.raises(DataError) as caught:
        looked_at(path)
    line = "format: {prompt-completion: {prompt: question, completion: answer}}"
    assert line in str(caught.value)
    source, _ = looked_at(path, line.replace("format: ", "format="))
    row = first_rows(source.files, 1)[0][1]
    (example,) = source.reader.read(row, 0)
    assert (example.prompt, example.completion) == (row["question"], row["answer"])
