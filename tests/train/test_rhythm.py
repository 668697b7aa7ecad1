"""`evals_per_epoch` and `saves_per_epoch`: so many in every epoch, at even distances and at its end."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from rich.console import Console

from sftcore import CheckError, ConflictError, SFTConfig, SFTCoreError, SFTTrainer
from sftcore.config.recipe import load_recipe
from sftcore.config.settings.rhythm import per_epoch
from sftcore.train.run import check_recipe, run_recipe
from tests.conftest import make_llama, make_tokenizer

ROWS = Dataset.from_list([{"text": f"hello {i}"} for i in range(7)])


def trainer_of(folder, rows=ROWS, evaluation=ROWS, **fields):
    tokenizer = make_tokenizer()
    model = make_llama(tokenizer)
    defaults = {"use_cpu": True, "per_device_train_batch_size": 1, "save_strategy": "no", "report_to": "none"}
    args = SFTConfig(str(folder / "out"), **{**defaults, **fields})
    return SFTTrainer(model, args, train_dataset=rows, eval_dataset=evaluation, processing_class=tokenizer)


def evaluated_at(trainer):
    return [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]


def saved_at(folder):
    return sorted(int(path.name.partition("-")[2]) for path in (folder / "out").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("fields", "evaluated", "saved"),
    [
        ({"evals_per_epoch": 2, "saves_per_epoch": 1, "num_train_epochs": 2}, [4, 7, 11, 14], [7, 14]),
        ({"evals_per_epoch": 3, "saves_per_epoch": 3, "num_train_epochs": 1}, [3, 5, 7], [3, 5, 7]),
        ({"evals_per_epoch": 1, "num_train_epochs": 1, "gradient_accumulation_steps": 2}, [4], []),
        ({"evals_per_epoch": 50, "num_train_epochs": 1, "gradient_accumulation_steps": 4}, [1, 2], []),
        ({"saves_per_epoch": 2, "max_steps": 5}, [], [4, 5]),
    ],
    ids=["two and one", "three", "accumulated", "more than steps", "in the middle"],
)
def test_epochs_are_divided_evenly(tmp_path, fields, evaluated, saved):
    if "saves_per_epoch" in fields:
        fields = {**fields, "save_strategy": "steps"}
    trainer = trainer_of(tmp_path, **fields)
    trainer.train()
    assert evaluated_at(trainer) == evaluated
    assert saved_at(tmp_path) == saved


def test_the_best_model_is_kept_and_a_run_resumes_in_the_same_rhythm(tmp_path):
    fields = {"evals_per_epoch": 2, "saves_per_epoch": 2, "save_strategy": "steps", "num_train_epochs": 2,
              "load_best_model_at_end": True, "learning_rate": 1e-3}  # fmt: skip
    whole = trainer_of(tmp_path, **fields)
    whole.train()
    assert saved_at(tmp_path) == [4, 7, 11, 14]
    assert whole.state.best_global_step in (4, 7, 11, 14)
    again = trainer_of(tmp_path, **fields)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-7"))
    assert evaluated_at(again) == [4, 7, 11, 14]


def test_a_recipe_takes_them_too(tmp_path, model_folder):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": f"hello {i}"}) + "\n" for i in range(8)))
    words = [f"model={model_folder}", f"data={{train: {path}, eval_rows: 2}}", "evals_per_epoch=2",
             "report_to=none", "num_train_epochs=1", "per_device_train_batch_size=1",
             "use_cpu=true", f"output_dir={tmp_path}"]  # fmt: skip
    trainer = run_recipe(check_recipe(load_recipe(None, words)), Console(quiet=True)).trainer
    assert evaluated_at(trainer) == [3, 6]
    with pytest.raises(SFTCoreError, match="the data have no evaluation set"):
        check_recipe(load_recipe(None, [words[0], f"data={path}", "evals_per_epoch=2"]))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"evals_per_epoch": 2, "eval_strategy": "epoch"}, 'evals_per_epoch and eval_strategy "epoch" contradict'),
        ({"evals_per_epoch": 2, "eval_steps": 5}, "evals_per_epoch and eval_steps contradict"),
        ({"saves_per_epoch": 2, "save_strategy": "no"}, 'saves_per_epoch and save_strategy "no" contradict'),
        ({"saves_per_epoch": 2, "save_steps": 5}, "saves_per_epoch and save_steps contradict"),
        ({"evals_per_epoch": 0}, "evals_per_epoch"),
        ({"evals_per_epoch": 2, "saves_per_epoch": 3, "load_best_model_at_end": True}, "a multiple of eval_steps"),
    ],
)
def test_what_contradicts_them_is_refused(tmp_path, fields, said):
    with pytest.raises(SFTCoreError) as caught:
        SFTConfig(str(tmp_path), **fields)
    assert said in str(caught.value)


def test_a_stream_has_no_epochs_to_count(tmp_path):
    with pytest.raises((CheckError, ConflictError), match=r"saves_per_epoch counts epochs.*Set save_steps"):
        trainer_of(tmp_path, ROWS.to_iterable_dataset(), max_steps=2, saves_per_epoch=1, save_strategy="steps")


def test_a_copy_of_a_configuration_says_the_same(tmp_path):
    import dataclasses

    made = SFTConfig(str(tmp_path), evals_per_epoch=2, saves_per_epoch=1, num_train_epochs=2)
    again = dataclasses.replace(made)
    assert (again.eval_steps, str(again.eval_strategy.value), again.save_steps) == (0.25, "steps", 0.5)
    assert per_epoch({"saves_per_epoch": 1, "num_train_epochs": 1})["save_steps"] < 1
