"""A tracker that cannot be used is named before the data are prepared, and `all` takes those that can."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from datasets import Dataset
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from sftcore import SFTConfig, SFTCoreError, SFTTrainer
from sftcore.config.recipe import load_recipe
from sftcore.config.settings.combined import installed
from sftcore.train.run import check_recipe
from tests.conftest import make_llama, make_tokenizer

PACKAGES = ("wandb", "tensorboard", "tensorboardX", "mlflow", "trackio", "swanlab", "comet_ml", "azureml")


@pytest.fixture
def without(monkeypatch, tmp_path):
    """None of these packages: what looks like them are folders without a module, as W&B leaves one behind."""
    import importlib.util

    for name in PACKAGES:
        (tmp_path / "left" / name).mkdir(parents=True)
        monkeypatch.setitem(sys.modules, name, ModuleType(name))  # which such a folder is imported as
    own = importlib.util.find_spec

    def find_spec(name, *rest):
        if name.partition(".")[0] not in PACKAGES:
            return own(name, *rest)
        return importlib.machinery.PathFinder.find_spec(name, [str(tmp_path / "left")])

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return tmp_path


def prepared(folder, report_to):
    """Whether the data were prepared, of a trainer that reports so."""
    tokenizer = make_tokenizer()
    args = SFTConfig(str(folder / "out"), max_steps=1, use_cpu=True, save_strategy="no", report_to=report_to)
    seen = []

    def text(row):
        seen.append(row)
        return row["text"]

    rows = Dataset.from_list([{"text": "hello"}])
    try:
        SFTTrainer(make_llama(tokenizer), args, train_dataset=rows, processing_class=tokenizer, formatting_func=text)
    finally:
        prepared.rows = list(seen)


@pytest.mark.parametrize(
    ("tracker", "package"),
    [("wandb", "wandb"), ("tensorboard", "tensorboard"), ("mlflow", "mlflow"), ("trackio", "trackio"),
     ("comet_ml", "comet-ml"), ("azure_ml", "azureml-sdk")],
)  # fmt: skip
def test_a_folder_of_a_packages_name_is_not_the_package(without, tracker, package):
    with pytest.raises(SFTCoreError, match=f"Install: pip install {package}"):
        prepared(without, tracker)
    assert prepared.rows == []


def test_all_takes_only_what_is_installed(without):
    assert not set(SFTConfig(str(without), use_cpu=True, report_to="all").report_to) & {*PACKAGES}
    prepared(without, "all")
    assert prepared.rows
    assert not any(map(installed, PACKAGES))


def test_a_package_that_is_broken_is_named_before_the_data(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")

    def broken():
        raise ImportError("cannot import name 'notf'\nfrom a partially initialised module")

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", broken)
    with pytest.raises(SFTCoreError) as caught:
        prepared(tmp_path, ["tensorboard"])
    assert 'report_to "tensorboard" cannot be used: ImportError: cannot import name' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert prepared.rows == []


def test_kubeflow_outside_of_it_is_said_and_nothing_to_install_is_offered(tmp_path, monkeypatch):
    monkeypatch.delenv("KUBEFLOW_TRAINER_SERVER_URL", raising=False)
    with pytest.raises(SFTCoreError, match="KUBEFLOW_TRAINER_SERVER_URL"):
        prepared(tmp_path, "kubeflow")
    assert prepared.rows == []


@pytest.mark.parametrize(
    ("report_to", "said"),
    [
        ("wandbb", 'Did you mean "wandb"'),
        ("WandB", 'Did you mean "wandb"'),
        ("wandb,tensorboard", "is not known"),
        (["tensorboard", "tensorbord"], 'Did you mean "tensorboard"'),
        (["all", "wandb"], 'report_to names "all" beside others. Write report_to: all'),
        (["none", "wandb"], 'report_to names "none" beside others'),
        (["wandb", "wandb"], 'report_to names "wandb" twice'),
        ({"wandb": True}, "report_to takes"),
        (7, "report_to takes"),
    ],
)
def test_what_transformers_would_find_later_or_not_at_all(tmp_path, write, report_to, said):
    with pytest.raises(SFTCoreError) as caught:
        SFTConfig(str(tmp_path), report_to=report_to)
    assert said in str(caught.value)
    rows = write("rows.jsonl", '{"text": "hello"}\n')
    raw = [f"model={tmp_path}", f"data={rows}", f"output_dir={tmp_path / 'out'}"]
    recipe = write(
        "recipe.yaml", f"report_to: {report_to if isinstance(report_to, (list, dict)) else repr(report_to)}\n"
    )
    with pytest.raises(SFTCoreError) as caught:
        check_recipe(load_recipe(recipe, raw))
    assert said in str(caught.value)


@pytest.mark.parametrize("report_to", [None, "none", ["none"], []])
def test_none_is_none(tmp_path, report_to):
    assert SFTConfig(str(tmp_path), use_cpu=True, report_to=report_to).report_to == []
