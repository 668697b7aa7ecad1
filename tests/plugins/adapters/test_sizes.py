"""Ranks, scales and dropouts with which nothing would train, and options that stand beside `arguments`."""

from __future__ import annotations

import dataclasses

import pytest
from datasets import Dataset
from peft import LoHaConfig, LoraConfig
from sftcore_plugins.adapters._peft_methods import fields_of_lora

from sftcore import CheckError, RecipeError, SFTTrainer
from sftcore.config.recipe import parse_recipe
from sftcore.config.setup import set_up_recipe
from sftcore.train.run import check_recipe
from tests.conftest import alpaca_rows
from tests.train.test_trainer import config


def recipe(model_folder, adapter, **fields):
    return parse_recipe({"model": str(model_folder), "data": "none.jsonl", "adapter": adapter, **fields})


@pytest.mark.parametrize("name", ["lora", "qlora"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 0}, "r is 0. It must be at least 1."),
        ({"r": -4}, "r is -4. It must be at least 1."),
        ({"lora_alpha": 0}, "lora_alpha is 0. It must be above 0."),
        ({"lora_dropout": 2.0}, "lora_dropout is 2.0. It must be at least 0 and below 1."),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0. It must be at least 0 and below 1."),
        ({"arguments": {"r": 0}}, "r is 0."),
        ({"arguments": {"rank_pattern": {"q_proj": 0}}}, "rank_pattern of q_proj is 0."),
        ({"arguments": {"alpha_pattern": {"q_proj": -1}}}, "alpha_pattern of q_proj is -1."),
    ],
    ids=["r 0", "r below 0", "alpha", "dropout 2", "dropout 1", "arguments", "rank pattern", "alpha pattern"],
)
def test_a_size_with_which_nothing_trains_is_refused_before_weights_are_read(model_folder, name, options, said):
    with pytest.raises(CheckError) as caught:
        check_recipe(recipe(model_folder, {name: options}))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "peft_config",
    [LoraConfig(r=4, lora_dropout=1.5), LoHaConfig(r=-1, target_modules=["q_proj"])],
    ids=["lora", "loha"],
)
def test_a_ready_configuration_is_checked_too(tmp_path, model_folder, peft_config):
    rows = Dataset.from_list(alpaca_rows(2))
    with pytest.raises(CheckError, match="It must be at least"):
        SFTTrainer(str(model_folder), config(tmp_path), train_dataset=rows, peft_config=peft_config)


@pytest.mark.parametrize("given", [{}, {"r": 1, "lora_alpha": 1, "lora_dropout": 0.0}], ids=["defaults", "smallest"])
def test_options_reach_peft_as_they_are(model_folder, given):
    setup = set_up_recipe(recipe(model_folder, {"lora": given}))
    plugin = next(one.plugin for one in setup.plugins.bound if one.selection.kind == "adapter")
    made = plugin._config()
    wanted = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, **given}
    assert {name: getattr(made, name) for name in wanted} == wanted


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_a_field_of_pefts_own_is_sent_to_arguments(model_folder, name):
    with pytest.raises(RecipeError) as caught:
        set_up_recipe(recipe(model_folder, {name: {"bias": "lora_only"}}))
    assert str(caught.value) == (
        f'recipe: adapter.{name}: "bias" is one of the arguments. Write arguments: {{bias: lora_only}}.'
    )


def test_all_wrong_options_of_an_adapter_are_named_together(model_folder):
    with pytest.raises(RecipeError) as caught:
        set_up_recipe(recipe(model_folder, {"lora": {"dropuot": 0.1, "r": "8", "bias": "all", "alhpa": 3}}))
    text = str(caught.value)
    assert "4 problems" in text
    assert all(part in text for part in ('"dropuot"', "adapter.lora.r: expected int", "{bias: all}", '"alhpa"'))


def test_fields_of_lora_are_those_of_peft():
    assert set(fields_of_lora()) == {one.name for one in dataclasses.fields(LoraConfig) if one.init}
