"""A row that cannot be used is named by its own file, wherever in the data it is met."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from rich.console import Console

from sftcore.config.recipe import load_recipe
from sftcore.core.errors import RowError
from sftcore.train.run import check_recipe, run_recipe

BAD = {"prompt": None, "completion": "x"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of 1,100 rows in each of three types; row 1,050 of the second is bad."""
    folder = tmp_path_factory.mktemp("files")
    for number in (1, 2):
        rows = [{"prompt": f"say {i}", "completion": f"The answer is {i}"} for i in range(1100)]
        if number == 2:
            rows[1050] = BAD
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{number}.json").write_text(json.dumps(rows))
        Dataset.from_list(rows).to_parquet(str(folder / f"{number}.parquet"))
    return folder


def run(model, out, *words):
    common = (f"model={model}", f"output_dir={out}", "use_cpu=true", "max_steps=1", "report_to=none", "max_length=8")
    return run_recipe(check_recipe(load_recipe(None, [*common, *words])), Console(quiet=True))


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("held_back", ["null", "0.5"])
def test_of_several_files_the_one_is_named_with_the_number_in_it(model_folder, files, tmp_path, ending, held_back):
    with pytest.raises(RowError) as caught:
        run(model_folder, tmp_path / "out", f"data.train={files}/*.{ending}", f"data.eval_fraction={held_back}")
    assert str(caught.value).startswith(f'{files / f"2.{ending}"} row 1050: the column "prompt" is null.')


def test_a_row_met_while_streaming_is_named_in_the_same_way(model_folder, files, tmp_path):
    words = (f"data.train={files}/2.jsonl", "data.streaming=true", "max_steps=150", "per_device_train_batch_size=8")
    with pytest.raises(RowError, match=r"/2\.jsonl row 1050: the column"):
        run(model_folder, tmp_path / "out", *words)


def test_a_row_among_the_first_is_named_before_anything_is_loaded(model_folder, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "say", "completion": "x"}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps(BAD) + "\n")
    with pytest.raises(RowError, match=r"b\.jsonl row 0: the column"):
        check_recipe(load_recipe(None, [f"model={model_folder}", f"data.train={tmp_path}/*.jsonl"]))
