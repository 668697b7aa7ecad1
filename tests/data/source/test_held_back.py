"""`eval_rows` and `max_rows` of a recipe: so many rows are held back or read, of one source and of a mixture."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from sftcore import DataError, RecipeError
from sftcore.config.recipe import load_recipe
from sftcore.data.source.several import shared_out
from sftcore.train.run import check_recipe, run_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("held")
    for name, count in (("a", 12), ("b", 6), ("c", 2)):
        lines = [json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def trained(model_folder, out, data, *words):
    more = ["use_cpu=true", "max_steps=1", "per_device_train_batch_size=2", f"output_dir={out}", "report_to=none"]
    recipe = load_recipe(None, [f"model={model_folder}", f"data={json.dumps(data)}", *more, *words])
    return run_recipe(check_recipe(recipe), Console(quiet=True)).trainer


def test_a_number_of_rows_is_evaluated_on_and_not_trained_on(tmp_path, model_folder, folder):
    data = {"train": str(folder / "a.jsonl"), "eval_rows": 5, "max_rows": 11}
    trainer = trained(model_folder, tmp_path / "out", data, "seed=3")
    texts = [{trainer.processing_class.decode(ids) for ids in one["input_ids"]}
             for one in (trainer.train_dataset, trainer.eval_dataset)]  # fmt: skip
    assert [len(one) for one in texts] == [6, 5]
    assert texts[0] | texts[1] == {f"a {i}<|im_end|>" for i in range(11)}
    assert str(trainer.args.eval_strategy.value) == "epoch"
    assert any("eval_loss" in entry for entry in trainer.state.log_history)


def test_every_source_of_a_mixture_gives_its_part(tmp_path, model_folder, folder):
    sources = [{"path": str(folder / "a.jsonl"), "max_rows": 9}, str(folder / "b.jsonl"), str(folder / "c.jsonl")]
    trainer = trained(model_folder, tmp_path / "out", {"train": sources, "eval_rows": 3})
    held = sorted(trainer.processing_class.decode(ids)[:1] for ids in trainer.eval_dataset["input_ids"])
    assert held == ["a", "a", "b"]
    assert len(trainer.train_dataset) == 9 + 6 + 2 - 3


def test_rows_are_shared_out_by_size():
    assert shared_out(3, [9, 6, 2]) == [2, 1, 0]
    assert shared_out(1, [5, 5]) == [1, 0]
    assert shared_out(8, [5, 5]) == [4, 4]
    assert shared_out(900, [1000, 1]) == [900, 0]
    assert sum(shared_out(7, [10, 10, 10])) == 7
    with pytest.raises(DataError, match="eval_rows is 9, and there are 10 rows in 2 sources"):
        shared_out(9, [5, 5])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"eval_rows": 0}, "at least 1, got 0"),
        ({"eval_rows": 2, "eval_fraction": 0.5}, "eval_rows and eval_fraction contradict"),
        ({"eval_rows": 2, "eval": "x.jsonl"}, "eval and eval_rows contradict"),
        ({"eval_rows": 2, "streaming": True}, "eval_rows does not work with streaming"),
        ({"rows": 2, "max_rows": 3}, "rows and max_rows are the same setting"),
        ({"max_rows": 0}, "at least 1, got 0"),
        ({"eval_rows": 0.1}, "expected int"),
    ],
)
def test_what_contradicts_itself_is_refused(data, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe(None, ["model=m", f"data={json.dumps({'train': 'a.jsonl', **data})}"])


def test_more_rows_than_there_are_is_refused(tmp_path, model_folder, folder):
    with pytest.raises(DataError, match="eval_rows is 12, and there are 12 rows"):
        trained(model_folder, tmp_path / "out", {"train": str(folder / "a.jsonl"), "eval_rows": 12})
