"""What a recipe says of its sources and evaluation sets, and every mistake in it with its place."""

from __future__ import annotations

import pytest

from sftcore.config.recipe import load_recipe, parse_recipe
from sftcore.core.errors import SFTCoreError


def data_of(value):
    return parse_recipe({"model": "m", "data": value}, place="r.yaml").data


def test_each_source_says_what_it_is(write):
    text = """
model: m
data:
- a.jsonl
- {path: b.parquet, format: alpaca, weight: 2, rows: 1000, name: code}
- {path: [c1.jsonl, c2.jsonl], format: {chat: {messages: turns}}, columns: [turns]}
- {path: owner/name, config: small, split: "train[:10%]"}
"""
    first, second, third, fourth = load_recipe(write("r.yaml", text)).data.sources
    assert (first.path, first.name, first.named, first.weight, first.format) == (
        "a.jsonl",
        "a.jsonl",
        False,
        None,
        None,
    )
    assert (second.path, second.name, second.weight, second.rows) == ("b.parquet", "code", 2.0, 1000)
    assert (second.format.name, second.labelled("b.parquet")) == ("alpaca", "code: b.parquet")
    assert (third.path, third.columns) == (("c1.jsonl", "c2.jsonl"), ("turns",))
    assert third.format.options == {"messages": "turns"}
    assert (fourth.config, fourth.split) == ("small", "train[:10%]")


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        ("a.jsonl", ["a.jsonl"]),
        (["a.jsonl", "b.json"], [("a.jsonl", "b.json")]),
        (["./x", "./y"], [("./x", "./y")]),
        (["a.jsonl", "b.parquet"], ["a.jsonl", "b.parquet"]),
        (["owner/a", "owner/b"], ["owner/a", "owner/b"]),
        (["a.jsonl", {"path": "b.jsonl"}], ["a.jsonl", "b.jsonl"]),
        ({"path": "a.jsonl", "rows": 3}, ["a.jsonl"]),
        ({"train": {"path": "a.jsonl"}}, ["a.jsonl"]),
    ],
)
def test_files_of_one_type_are_one_source_and_others_one_each(value, paths):
    assert [one.path for one in data_of(value).sources] == paths


def test_what_stands_beside_the_sources_holds_for_those_that_do_not_say_it():
    value = {"train": ["a.csv", {"path": "o/b", "rows": 5, "split": "dev"}], "rows": 9, "split": "main", "config": "c"}
    found = [(one.rows, one.split, one.config) for one in data_of({**value, "eval": "e.csv"}).sources]
    assert found == [(9, "main", "c"), (5, "dev", "c")]
    (own,) = data_of({**value, "eval": "e.csv", "eval_split": "held"}).eval_sets[""]
    assert (own.rows, own.split, own.config) == (None, "held", "c")


def test_evaluation_sets_have_names():
    hard = ["h.jsonl", {"path": "i.parquet", "name": "i"}]
    sets = data_of({"train": "a.jsonl", "eval": {"dev": "d.jsonl", "hard": hard}}).eval_sets
    assert {name: [one.path for one in some] for name, some in sets.items()} == {
        "dev": ["d.jsonl"], "hard": ["h.jsonl", "i.parquet"],
    }  # fmt: skip
    assert list(data_of({"train": "a.jsonl", "eval": {"path": "d.jsonl", "rows": 3}}).eval_sets) == [""]


def test_a_path_that_stands_twice_is_numbered():
    found = data_of([{"path": "a.jsonl", "rows": 3}, {"path": "a.jsonl", "format": "text"}]).sources
    assert [one.name for one in found] == ["a.jsonl", "a.jsonl (2)"]


def test_overrides_reach_into_the_data(write):
    recipe = load_recipe(write("r.yaml", "model: m\ndata: a.jsonl\n"), ["data.rows=50", "data.eval=e.jsonl"])
    assert recipe.data.sources[0].rows == 50
    assert recipe.settings["eval_strategy"] == "epoch"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (["a.jsonl", {"path": "b.jsonl", "weight": 0}], "data[1].weight: a weight is a number above 0, got 0."),
        ([{"path": "b.jsonl", "weight": ".5"}], "data[0].weight: expected float | None, got str '.5'."),
        ([{"path": "b.jsonl", "rows": 0}], "data[0].rows: rows is how many rows are read, at least 1, got 0."),
        ([{"path": "b.jsonl", "rows": 1.5}], "data[0].rows: expected int | None"),
        ([{"path": "b.jsonl", "num_samples": 5}], 'data[0]: unknown key "num_samples". Did you mean "rows"?'),
        ([{"path": "b.jsonl", "probability": 1}], 'data[0]: unknown key "probability". Did you mean "weight"?'),
        ([{"pth": "b.jsonl"}], 'data[0]: unknown key "pth". Did you mean "path"?'),
        ([{"name": "x"}], "data[0]: the source has no path."),
        ([{"path": "a.jsonl"}, 5], "data[1]: expected str | list[str], got int 5."),
        ([{"path": "a.jsonl", "name": "x"}, {"path": "b", "name": "x"}], 'data[1].name: 2 sources have the name "x".'),
        ([{"path": "a.jsonl", "columns": []}], "data[0].columns: columns names none."),
        ([{"path": "a.jsonl", "format": ["text", "chat"]}], "data[0].format: a run has one format, got 2."),
        ([], "data: no data are named."),
        ({"train": "a.jsonl", "max_samples": 4}, 'data: unknown key "max_samples". Did you mean "rows"?'),
        ({"train": [{"path": "a", "weight": 1}, "b"], "stop": "al"}, 'data.stop: stop is "first" or "all", got "al".'),
        (
            {"train": ["a.jsonl", "b.csv"], "stop": "all"},
            "data.stop: stop says where a mixture ends, and no source has",
        ),
        ({"train": "a.jsonl", "eval": {"rows": 3}}, "data.eval: the evaluation set has rows, and no path."),
        ({"train": "a.jsonl", "eval": {"dev": None}}, 'data.eval: the evaluation set "dev" has no path.'),
        ({"train": "a.jsonl", "eval": {}}, "data.eval: the mapping names no evaluation set."),
        ({"train": "a.jsonl", "eval": {"dev": {"path": "d", "weigth": 1}}}, 'data.eval.dev: unknown key "weigth".'),
        ({"train": "a.jsonl", "eval": {"dev": ["d.csv", {}]}}, "data.eval.dev[1]: the source has no path."),
    ],
)
def test_a_mistake_is_named_by_its_place(value, said):
    with pytest.raises(SFTCoreError) as caught:
        data_of(value)
    assert f"r.yaml: {said}" in str(caught.value)


def test_all_mistakes_are_said_at_once():
    bad = [{"path": "a", "weight": -1, "rows": 0}, {"path": "b", "format": {"alpaca": {"instrution": "q"}}, "typ": 1}]
    with pytest.raises(SFTCoreError) as caught:
        parse_recipe({"model": "m", "data": bad, "lr": 1}, place="r.yaml")
    said = str(caught.value)
    for one in ('unknown key "lr"', "data[0].weight: ", "data[0].rows: ", 'data[1]: unknown key "typ"'):
        assert one in said
    assert 'data[1].format.alpaca: unknown key "instrution". Did you mean "instruction"?' in said
