"""Early stopping and callbacks from settings: of a recipe, and of SFTConfig."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback

from sftcore import CheckError, SFTConfig, SFTTrainer
from sftcore.core.errors import SFTCoreError
from sftcore.train.parts.callbacks import callbacks_of, check_callbacks, parse_callbacks
from tests import commands
from tests.conftest import alpaca_rows

OURS = """
import json
from transformers import TrainerCallback

class Steps(TrainerCallback):
    def __init__(self, file, every: int = 1):
        self.file, self.every = file, every

    def on_step_end(self, args, state, control, **_):
        if state.global_step % self.every == 0:
            with open(self.file, "a") as file:
                file.write(f"{state.global_step} ")

class Other:
    pass
"""
POINTS = b"[sftcore.callback]\nsteps = acme_callbacks:Steps\nother = acme_callbacks:Other\ngone = acme_callbacks:Gone\n"


@pytest.fixture
def rows(write):
    return write("train.jsonl", "".join(json.dumps(row) + "\n" for row in alpaca_rows(12)))


def test_a_run_stops_once_its_evaluations_get_no_better(tmp_path, model_folder, rows):
    done = commands.sftcore(
        "train", "--model", str(model_folder), "--data", str(rows), "data.eval_fraction=0.5", "use_cpu=true",
        f"output_dir={tmp_path / 'out'}", "eval_strategy=steps", "eval_steps=1", "max_steps=20", "logging_steps=1",
        "early_stopping_patience=2", "early_stopping_threshold=100", "save_strategy=no",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # the first evaluation is the best; the second and third are not better by 100
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["steps"] == 3


def test_the_same_from_python_with_the_loss_as_the_metric(tmp_path, llama, tokenizer):
    args = SFTConfig(
        str(tmp_path), early_stopping_patience=1, early_stopping_threshold=100.0, eval_strategy="steps", eval_steps=1,
        max_steps=9, use_cpu=True, save_strategy="no", report_to="none",
    )  # fmt: skip
    data = Dataset.from_list(alpaca_rows(8))
    trainer = SFTTrainer(llama, args, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.global_step == 2
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)


def test_a_callback_of_an_installed_distribution_runs_with_its_options(
    tmp_path, model_folder, rows, write_distribution
):
    write_distribution("acme_callbacks", OURS, entry_points=POINTS)
    seen = tmp_path / "seen.txt"
    args = SFTConfig(
        str(tmp_path / "out"), callbacks={"steps": {"file": str(seen), "every": 2}}, max_steps=5, use_cpu=True,
        save_strategy="no", report_to="none",
    )  # fmt: skip
    SFTTrainer(str(model_folder), args, train_dataset=Dataset.from_list(alpaca_rows(8))).train()
    assert seen.read_text() == "2 4 "


def test_a_recipe_names_it_as_well(tmp_path, model_folder, rows, write_distribution, monkeypatch):
    write_distribution("acme_callbacks", OURS, entry_points=POINTS)
    seen, recipe = tmp_path / "seen.txt", tmp_path / "r.yaml"
    recipe.write_text(
        f"model: {model_folder}\ndata: {{train: {rows}, eval_fraction: 0.5}}\nmax_steps: 2\nuse_cpu: true\n"
        f"output_dir: {tmp_path / 'out'}\nmetric_for_best_model: loss\neval_strategy: epoch\n"
        "callbacks:\n- EarlyStoppingCallback: {early_stopping_patience: 1}\n"
        f"- steps@acme_callbacks: {{file: {seen}}}\n"
    )
    done = commands.sftcore("train", str(recipe), PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert seen.read_text() == "1 2 "


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"callbacks": ["EarlyStopingCallback"]}, 'Did you mean "EarlyStoppingCallback"?'),
        ({"callbacks": "stepz"}, 'Did you mean "steps"?'),
        ({"callbacks": "steps@nobody"}, 'there is no callback named "steps@nobody"'),
        ({"callbacks": [3]}, "a callback is a name, or a mapping of a name to its options, got 3"),
        ({"callbacks": {"steps": 3}}, "the options of steps are a mapping, got 3"),
        ({"callbacks": "TrainerCallback"}, 'there is no callback named "TrainerCallback"'),
        ({"callbacks": "os:system"}, 'there is no callback named "os:system"'),
    ],
)
def test_what_is_wrong_is_known_before_anything_is_imported(settings, said, write_distribution):
    write_distribution("acme_callbacks", OURS, entry_points=POINTS)
    with pytest.raises(SFTCoreError) as error:
        check_callbacks(settings, evaluates=True, where="r.yaml")
    assert str(error.value).startswith("r.yaml")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("callbacks", "said"),
    [
        ({"steps": {"file": "x", "evry": 2}}, "unexpected keyword argument 'evry'. It takes: file, every."),
        ("steps", "missing a required argument: 'file'. It takes: file, every."),
        ("other", "other is not a subclass of transformers.TrainerCallback"),
        ("gone", "the callback gone cannot be imported from acme_callbacks:Gone: AttributeError"),
    ],
)
def test_a_callback_that_cannot_be_made_is_named(tmp_path, callbacks, said, write_distribution):
    write_distribution("acme_callbacks", OURS, entry_points=POINTS)
    with pytest.raises(SFTCoreError) as error:
        callbacks_of(SFTConfig(str(tmp_path), callbacks=callbacks, use_cpu=True))
    assert said in str(error.value)


def test_early_stopping_without_evaluations_is_refused(tmp_path, model_folder, rows):
    for further in ([], ["data.eval_fraction=0.5", "eval_strategy=no"]):
        words = ["--model", str(model_folder), "--data", str(rows), "early_stopping_patience=2", *further]
        done = commands.sftcore("train", *words, f"output_dir={tmp_path / 'out'}")
        assert done.returncode == 1
        assert "early_stopping_patience counts evaluations, and this run makes none" in done.stderr
    with pytest.raises(SFTCoreError, match="counts evaluations"):
        callbacks_of(SFTConfig(str(tmp_path), early_stopping_patience=2, use_cpu=True))


def test_callbacks_are_given_in_any_of_the_usual_shapes():
    assert parse_callbacks(None, where="") == {}
    assert parse_callbacks("a", where="") == {"a": {}}
    assert parse_callbacks({"a": None, "b": {"x": 1}}, where="") == {"a": {}, "b": {"x": 1}}


def test_transformers_own_is_the_class_of_that_name(tmp_path):
    args = SFTConfig(str(tmp_path), callbacks=[{"EarlyStoppingCallback": {"early_stopping_patience": 4}}], use_cpu=True)
    (made,) = callbacks_of(args)
    assert type(made) is EarlyStoppingCallback
    assert made.early_stopping_patience == 4


class Recorded(TrainerCallback):
    """Notes the keywords that each of its methods is called with."""

    def __init__(self):
        self.handed = {}


def _note(moment):
    def method(self, args, state, control, **kwargs):
        self.handed.setdefault(moment, set()).update(kwargs)

    return method


def _without_keywords(moment):
    return type("Short", (TrainerCallback,), {moment: lambda self, args, state, control: None})


MOMENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]
for _name in MOMENTS:
    setattr(Recorded, _name, _note(_name))


@pytest.fixture
def make(tmp_path, tokenizer, llama):
    def trainer(*callbacks):
        args = SFTConfig(
            str(tmp_path / "out"), use_cpu=True, max_steps=2, report_to="none", logging_steps=1, save_strategy="steps",
            save_steps=1, eval_strategy="steps", eval_steps=1, gradient_accumulation_steps=2,
            per_device_train_batch_size=1,
        )  # fmt: skip
        rows = Dataset.from_list([{"text": f"hello, world {i}"} for i in range(6)])
        return SFTTrainer(
            llama, args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer, callbacks=list(callbacks)
        )

    return trainer


def test_a_callback_that_names_what_it_is_handed_trains_and_one_without_keywords_is_refused(make):
    recorded = Recorded()
    trainer = make(recorded)
    trainer.train()
    trainer.predict(trainer.eval_dataset)
    called = recorded.handed.keys()
    assert {"on_train_begin", "on_substep_end", "on_evaluate", "on_log", "on_save", "on_predict"} <= called
    for moment, names in recorded.handed.items():
        exact = ", ".join(sorted(names))
        scope = {}
        exec(f"def {moment}(self, args, state, control, {exact}): pass", scope)
        make(type("Exact", (TrainerCallback,), {moment: scope[moment]}))
        for given in (_without_keywords(moment), _without_keywords(moment)()):
            with pytest.raises(CheckError) as error:
                make(given)
            said = f"callbacks: transformers calls Short.{moment} with keywords that it does not take, such as model."
            assert said in str(error.value)
            assert f"Write it as def {moment}(self, args, state, control, **kwargs)." in str(error.value)


def test_a_callback_without_keywords_that_comes_later_is_refused_before_the_first_step(make):
    trainer = make()
    trainer.add_callback(_without_keywords("on_step_end"))
    with pytest.raises(CheckError, match=r"transformers calls Short\.on_step_end"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_methods_of_a_class_and_static_ones_are_called_as_they_are(make):
    def static(args, state, control, **kwargs):
        return None

    def of_class(cls, args, state, control, **kwargs):
        return None

    body = {"on_step_begin": staticmethod(static), "on_step_end": classmethod(of_class)}
    make(type("Bare", (TrainerCallback,), body)).train()
