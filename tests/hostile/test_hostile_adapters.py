"""Regular expressions of a foreign adapter that would be matched without end: stopped, wherever they stand."""

from __future__ import annotations

import json
import shutil

import pytest

from sftcore import SFTConfig, SFTTrainer
from sftcore.chat.sandbox import limits, patterns
from sftcore.core.errors import ModelError
from sftcore.tools.load_saved import put_adapter
from sftcore.tools.saved import open_run
from tests.conftest import alpaca_rows

ENDLESS = r"([\w.]+)+!"
OPTIONS = {
    "target_modules": ENDLESS,
    "exclude_modules": r"(a|\w|.)*!",
    "layers_pattern": [ENDLESS],
    "rank_pattern": {ENDLESS: 4},
    "alpha_pattern": {"q_proj": 4, r"((\w|\.)*)*!": 4},
    "modules_to_save": [ENDLESS],
    "feedforward_modules": r".*.*.*.*.*.*.*.*.*.*!",
}
NAMES = ["model", *(f"model.layers.{i}.self_attn.{one}" for i in range(2) for one in ("q_proj", "v_proj"))]


@pytest.fixture(scope="module")
def saved(model_folder, tmp_path_factory):
    """A good adapter on a local base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=2, target_modules=r".*\.(q|v)_proj", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(folder)
    return folder


@pytest.fixture
def damaged(saved, tmp_path):
    """The adapter with other options."""

    def made(**options):
        folder = shutil.copytree(saved, tmp_path / "adapter")
        told = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**told, **options}))
        return folder

    return made


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.3)
    assert limits.SECONDS == 3


def trainer_of(model, folder):
    from datasets import Dataset

    args = SFTConfig(str(folder), use_cpu=True, report_to="none", gradient_checkpointing=False)
    return SFTTrainer(str(model), args, train_dataset=Dataset.from_list(alpaca_rows(2)))


@pytest.mark.parametrize("option", OPTIONS)
def test_expressions_without_end_are_stopped(option, short):
    with pytest.raises(ModelError, match=rf'\("{option}" of adapter_config.json\) take longer than 0.3 s'):
        patterns.refuse_endless({"r": 8, option: OPTIONS[option]}, NAMES, "model x")


def test_an_adapter_with_one_is_not_trained_on(damaged, short, tmp_path):
    folder = damaged(target_modules=ENDLESS)
    with pytest.raises(ModelError, match="regular expressions") as caught:
        trainer_of(folder, tmp_path / "out")
    assert str(folder) in caught.value.where


def test_an_adapter_with_one_is_not_merged(damaged, short, llama):
    run = open_run(str(damaged(target_modules=ENDLESS)))
    with pytest.raises(ModelError, match="regular expressions"):
        put_adapter(llama, run, 8)


def test_ordinary_expressions_and_names_are_taken(saved, tmp_path, monkeypatch):
    trainer_of(saved, tmp_path / "out")
    monkeypatch.setattr(patterns.subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    plain = {"target_modules": ["q_proj"], "exclude_modules": None, "rank_pattern": {"layers.0.v_proj": 2}, "r": 4}
    patterns.refuse_endless({**plain, "base_model_name_or_path": "/a (b)/c"}, NAMES, "")
    patterns.refuse_endless({"target_modules": "all-linear", "layers_pattern": "h"}, NAMES, "")


def test_what_is_not_an_expression_is_left_to_peft():
    patterns.refuse_endless({"target_modules": "(q_proj", "rank_pattern": {"*": 1}}, NAMES, "")
