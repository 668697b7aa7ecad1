"""`tracker`: each tracker reads its project, entity and tags where transformers' own callback looks for them."""

from __future__ import annotations

import json
import os

import pytest
from datasets import Dataset
from transformers import TrainerCallback

from sftcore import SFTConfig, SFTCoreError, SFTTrainer
from sftcore.config.settings.tracker import READS, environment_for, tracker_problems
from tests.conftest import make_llama, make_tokenizer

ALL = {"project": "p", "entity": "e", "tags": ["a", "b"]}
READ = {
    "wandb": {"WANDB_PROJECT": "p", "WANDB_ENTITY": "e", "WANDB_TAGS": "a,b"},
    "mlflow": {"MLFLOW_EXPERIMENT_NAME": "p", "MLFLOW_TAGS": json.dumps({"a": "true", "b": "true"})},
    "trackio": {},
    "swanlab": {"SWANLAB_PROJECT": "p", "SWANLAB_WORKSPACE": "e"},
    "comet_ml": {"COMET_PROJECT_NAME": "p", "COMET_WORKSPACE": "e"},
    "clearml": {"CLEARML_PROJECT": "p"},
}


@pytest.mark.parametrize("tracker", READ)
def test_each_tracker_has_its_variables(tracker):
    assert environment_for({"tracker": ALL, "report_to": [tracker]}) == READ[tracker]


def test_transformers_reads_these_variables():
    """Those that its own callbacks name; the others are read by the trackers' libraries."""
    from pathlib import Path

    import transformers.integrations.integration_utils as theirs

    source = Path(theirs.__file__).read_text(encoding="utf-8")
    for variable in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TAGS", "SWANLAB_PROJECT", "CLEARML_PROJECT"):
        assert f'getenv("{variable}"' in source
    assert "project=args.project" in source


class Recorded(TrainerCallback):
    def __init__(self):
        self.seen = {}

    def on_train_begin(self, args, state, control, **kwargs):
        names = [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "SWANLAB_"))]
        self.seen = {name: os.environ[name] for name in names} | {"name": args.run_name, "project": args.project}


def trained(folder, monkeypatch, **fields):
    """What a callback finds when a run begins, without those of the trackers, which are not installed."""
    import sftcore.config.settings.combined as combined

    monkeypatch.setattr(combined, "PACKAGES_OF_TRACKERS", {})
    monkeypatch.setattr("sftcore.train.refusals.unusable_trackers", lambda report_to: [])
    monkeypatch.setattr("transformers.trainer.get_reporting_integration_callbacks", lambda report_to: [])
    tokenizer, recorded = make_tokenizer(), Recorded()
    args = SFTConfig(str(folder), max_steps=1, use_cpu=True, save_strategy="no", **fields)
    trainer = SFTTrainer(make_llama(tokenizer), args, train_dataset=Dataset.from_list([{"text": "hello"}]),
                         processing_class=tokenizer, callbacks=[recorded])  # fmt: skip
    trainer.train()
    return recorded.seen


def test_the_variables_are_there_while_a_run_trains_and_as_before_afterwards(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    before = dict(os.environ)
    seen = trained(tmp_path, monkeypatch, report_to=["wandb", "swanlab"], tracker={**ALL, "run_name": "first"})
    assert {name: seen[name] for name in READ["wandb"]} == READ["wandb"]
    assert seen["SWANLAB_PROJECT"] == "p"
    assert seen["name"] == "first"
    assert {name for name in os.environ if os.environ[name] != before.get(name)} <= {"ACCELERATE_MIXED_PRECISION"}
    assert "WANDB_ENTITY" not in os.environ


def test_trackio_reads_a_field(tmp_path, monkeypatch):
    assert trained(tmp_path, monkeypatch, report_to="trackio", tracker={"project": "p", "name": "n"}) == {
        "project": "p", "name": "n"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tracker": ALL, "report_to": "none"}, "report_to names none"),
        ({"tracker": ALL}, "report_to names none"),
        ({"tracker": {"projct": "p"}, "report_to": "wandb"}, 'no key "projct". Did you mean "project"?'),
        ({"tracker": {"entity": "e"}, "report_to": "mlflow"}, 'tracker.entity is not read by "mlflow"'),
        ({"tracker": {"tags": [1]}, "report_to": "wandb"}, "tags is a list of texts"),
        ({"tracker": {"tags": ["a,b"]}, "report_to": "wandb"}, "commas between them"),
        ({"tracker": {"project": ""}, "report_to": "wandb"}, "tracker.project is a text"),
        ({"tracker": {"run_name": "a"}, "run_name": "b", "report_to": "wandb"}, "two names for the run"),
        ({"tracker": ["a"], "report_to": "wandb"}, "tracker"),
    ],
)
def test_what_no_tracker_reads_is_refused(tmp_path, fields, said):
    with pytest.raises(SFTCoreError) as caught:
        SFTConfig(str(tmp_path), **fields)
    assert said in str(caught.value)


def test_a_key_that_one_of_several_trackers_reads_is_taken():
    found = list(tracker_problems({"tracker": ALL, "report_to": ["wandb", "trackio"]}))
    assert [one.severity for one in found] == ["warning", "warning"]
    assert not list(tracker_problems({"tracker": ALL, "report_to": "all"}))
    assert set(READS) == set(READ)
