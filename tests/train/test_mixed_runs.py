"""Runs on several sources: named in plan, manifest and errors, evaluated set by set, resumed and repeated."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from datasets import Dataset
from rich.console import Console

from sftcore import DataSource, Mixture
from sftcore.config.recipe import load_recipe
from sftcore.core.errors import CheckError, DataError, RowError
from sftcore.tools.replay import checked_again, read_manifest, replay
from sftcore.train.guard.named_rows import named_rows
from sftcore.train.run import check_recipe, run_recipe
from tests.conftest import make_llama

RECIPE = """
model: {model}
data:
  train:
  - {{path: chat.jsonl, weight: 2}}
  - {{path: code.jsonl, name: code, format: {{alpaca: {{instruction: q, output: a}}}}, weight: 1, rows: 20}}
  - {{path: [m1.json, m2.json], name: maths}}
  eval: {{dev: dev.jsonl, hard: [dev.jsonl, {{path: maths.parquet, name: pieces}}]}}
{more}
use_cpu: true
max_steps: 6
per_device_train_batch_size: 2
logging_steps: 2
eval_steps: 2
save_steps: 4
eval_strategy: steps
learning_rate: 1e-2
report_to: none
metric_for_best_model: dev_mean_token_accuracy
output_dir: out
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with sources of four shapes; row 3 of the second file of `maths` is row 8 of that source."""
    folder = tmp_path_factory.mktemp("data")

    def turns(i):
        return {"messages": [{"role": "user", "content": f"maths {i}"}, {"role": "assistant", "content": "y"}]}

    def lines(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    lines("chat.jsonl", [{"text": f"chat {i}"} for i in range(40)])
    lines("code.jsonl", [{"q": f"code {i}", "a": "x"} for i in range(30)])
    lines("dev.jsonl", [{"text": f"dev {i}"} for i in range(4)])
    (folder / "m1.json").write_text(json.dumps([turns(i) for i in range(5)]))
    (folder / "m2.json").write_text(json.dumps([turns(i) for i in range(5, 25)]))
    Dataset.from_list([turns(i) for i in range(3)]).to_parquet(str(folder / "maths.parquet"))
    return folder


@pytest.fixture
def run(model_folder, data, tmp_path, monkeypatch):
    """Run the recipe in a folder of its own, with these lines more in `data` and these overrides."""
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def run(*words, more="", stop_at=None):
        (tmp_path / "r.yaml").write_text(RECIPE.format(model=model_folder, more=more))
        checked = check_recipe(load_recipe("r.yaml", words))

        def before(trainer):
            if stop_at is not None:
                from sftcore.train.record.recorder import StopAt

                trainer.add_callback(StopAt(stop_at))

        return run_recipe(checked, Console(quiet=True), before_training=before).trainer

    return run


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("more", ["  stop: all", "  streaming: true"])
def test_a_run_resumed_in_the_middle_of_a_mixture_is_the_run_that_never_stopped(run, tmp_path, more):
    whole = run("output_dir=whole", more=more)
    run("output_dir=halves", "save_steps=2", more=more, stop_at=2)
    again = run("output_dir=halves", "resume_from_checkpoint=last", more=more)
    assert again.resumption.first_step == 2
    assert weights(tmp_path / "halves") == weights(tmp_path / "whole")
    losses = [[one["loss"] for one in trainer.state.log_history if "loss" in one] for trainer in (whole, again)]
    assert losses[0] == losses[1]


def test_a_run_names_its_sources_and_can_be_repeated(run, tmp_path, capsys):
    trainer = run(more="  stop: all")
    plan = capsys.readouterr().err
    assert "data       train_dataset['code']: 20 of 20 rows kept (format \"alpaca\")" in plan
    assert re.search(r"data       train_dataset: 10\d rows of 3 sources mixed by weight \(stop: all\), ", plan)
    assert re.search(
        r"train_dataset\['maths'\]: 25 rows of the mixture \(2[45]..%\), all of its rows; it ends here", plan
    )
    assert "data       eval_dataset['hard']['pieces']: 3 of 3 rows kept" in plan
    names = set(trainer.state.log_history[-1]) | {key for one in trainer.state.log_history for key in one}
    assert {"eval_dev_loss", "eval_hard_loss", "eval_dev_mean_token_accuracy", "eval_hard_entropy"} <= names
    assert not {"eval_loss", "eval_entropy"} & names

    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    code = manifest["data_sources"]["train_dataset['code']"]
    assert (code["files"], code["rows"], code["weight"], code["format"]) == (["code.jsonl"], 20, 1.0, 'format "alpaca"')
    assert set(manifest["data_sources"]["train_dataset['maths']"]["files"]) == {"m1.json", "m2.json"}
    assert [one["name"] for one in manifest["data"]["ledgers"][:4]] == [
        "train_dataset['chat.jsonl']", "train_dataset['code']", "train_dataset['maths']", "train_dataset",
    ]  # fmt: skip
    ledgers = json.loads((tmp_path / "out" / "ledger.json").read_text())["ledgers"]
    assert [one["rows"] for one in ledgers[3]["sources"]] == pytest.approx([50, 25, 25], abs=2)

    recorded = read_manifest("out")
    verdict = replay(recorded, checked_again(recorded, "again"), Console(quiet=True), print)
    assert (verdict.equal, "bit-identical" in verdict.weights) == (True, True)


def test_rows_of_a_step_are_named_by_their_source(model_folder, tmp_path, tokenizer):
    from sftcore import SFTConfig, SFTTrainer

    rows = [Dataset.from_list([{"text": f"{name} {i}"} for i in range(9)]) for name in ("one", "two")]
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    mixture = Mixture([DataSource(rows[0], "one", weight=1), DataSource(rows[1], "two", weight=1)])
    trainer = SFTTrainer(make_llama(tokenizer), args, train_dataset=mixture, processing_class=tokenizer)
    wanted = [next(i for i, row in enumerate(trainer.train_dataset) if tokenizer.decode(row["input_ids"]).startswith(t))
              for t in ("one 3", "two 5")]  # fmt: skip
    named = named_rows(trainer, wanted)
    assert named.startswith("row 3 of train_dataset['one'], row 5 of train_dataset['two'], beginning ")


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_row_met_in_the_run_is_named_by_source_and_file(run, tmp_path, streaming):
    rows = [json.loads(line) for line in (tmp_path / "code.jsonl").read_text().splitlines()]
    many = [*(rows[0] for _ in range(1100)), {"q": None, "a": "x"}]
    (tmp_path / "code.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    train = (
        "[{path: chat.jsonl, weight: 1}, {path: code.jsonl, name: code, weight: 9, format: {alpaca: {instruction: q, "
    )
    words = (f"data.train={train}output: a}}}}}}]", f"data.streaming={streaming}", "data.stop=all", "data.eval=null")
    quick = ("max_steps=40", "save_strategy=no", "eval_strategy=no", "metric_for_best_model=null")
    with pytest.raises(RowError, match=r'^code: code\.jsonl row 1100: the column "q" is null'):
        run(*words, *quick, "per_device_train_batch_size=64")


def test_what_is_wrong_with_several_sources_is_said_before_anything_is_loaded(run, tmp_path):
    (tmp_path / "m2.json").write_text('[{"messages": [{"role": "user"}]}]')
    (tmp_path / "chat.jsonl").unlink()
    with pytest.raises(CheckError) as caught:
        run()
    assert "chat.jsonl: no such file." in str(caught.value)
    assert 'maths: m2.json row 0: messages[0] (user) has no "content"' in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.train=[{path: chat.jsonl, columns: [txt]}]"], 'no installed format recognises the columns'),
        (["data.train={path: chat.jsonl, split: 'train[5]'}"], "data.train: split \"train[5]\" is not a slice"),
        (["metric_for_best_model=loss"], 'no evaluation of dev, hard measures "loss"'),
        (["data.streaming=true", "max_steps=-1"], "Add max_steps, or drop data.streaming"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(run, words, said):
    with pytest.raises((DataError, CheckError, ValueError)) as caught:
        run(*words)
    assert said in str(caught.value)


def test_a_share_of_every_source_is_held_back(run):
    trainer = run("data.eval=null", "data.eval_fraction=0.2", "metric_for_best_model=loss", "max_steps=1")
    ledgers = {one.name: one.rows_in for one in trainer.data.ledgers}
    assert [ledgers[f"eval_dataset['{name}']"] for name in ("chat.jsonl", "code", "maths")] == [8, 4, 5]
    assert [ledgers[f"train_dataset['{name}']"] for name in ("chat.jsonl", "code", "maths")] == [32, 16, 20]
    assert len(trainer.eval_dataset) == 17
