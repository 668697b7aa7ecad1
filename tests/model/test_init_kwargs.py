"""Arguments of `from_pretrained`: misspelt ones are named with the near one, settings of bits go where they belong."""

from __future__ import annotations

import pytest
from datasets import Dataset
from peft import LoraConfig

from sftcore import CheckError, ConflictError, ModelError, SFTConfig, SFTCoreError, SFTTrainer
from sftcore.config.recipe import parse_recipe
from sftcore.core.errors import UnknownKeyError
from sftcore.train.run import check_recipe
from tests.conftest import alpaca_rows
from tests.train.test_trainer import config

ROWS = Dataset.from_list(alpaca_rows(4))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("atn_implementation", "attn_implementation"),
        ("revison", "revision"),
        ("low_cpu_memusage", ""),
        ("max_memry", "max_memory"),
        ("hidden_sizes", "hidden_size"),
    ],
    ids=["attention", "revision", "gone", "memory", "of the configuration"],
)
@pytest.mark.parametrize("adapted", [False, True], ids=["in full", "lora"])
def test_a_misspelt_argument_is_named_with_the_near_one(tmp_path, model_folder, wrong, right, adapted):
    peft_config = LoraConfig(task_type="CAUSAL_LM") if adapted else None
    args = config(tmp_path, model_init_kwargs={wrong: "x"})
    with pytest.raises(UnknownKeyError) as caught:
        SFTTrainer(str(model_folder), args, train_dataset=ROWS, peft_config=peft_config)
    assert str(caught.value).startswith(f'model_init_kwargs: unknown key "{wrong}".')
    assert f'Did you mean "{right}"?' in str(caught.value) or not right


def test_a_value_that_the_models_configuration_refuses_is_an_error_of_ours(tmp_path, model_folder):
    args = config(tmp_path, model_init_kwargs={"use_cache": "x"})
    with pytest.raises(ModelError, match="use_cache"):
        SFTTrainer(str(model_folder), args, train_dataset=ROWS)


def test_an_argument_that_the_configuration_has_is_taken(tmp_path, model_folder):
    args = config(tmp_path, model_init_kwargs={"attention_dropout": 0.25, "low_cpu_mem_usage": True})
    assert SFTTrainer(str(model_folder), args, train_dataset=ROWS).model.config.attention_dropout == 0.25


@pytest.mark.filterwarnings("ignore:load_in_")
def test_settings_of_bits_go_into_one_configuration(tmp_path):
    given = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
    made = SFTConfig(str(tmp_path), model_init_kwargs=given).model_init_kwargs
    assert set(made) == {"quantization_config"}
    values = made["quantization_config"].to_dict()
    assert {name: values[name] for name in given} == given


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"num_hidden_layers": 1}, ["9 weights are left out, such as model.layers.1."]),
        ({"num_hidden_layers": 3}, ["9 weights are new and random, such as model.layers.2."]),
        ({"num_hidden_layers": 2, "use_cache": False, "attention_dropout": 0.1}, []),
    ],
    ids=["fewer layers", "more layers", "the same layers"],
)
def test_a_field_that_changes_which_weights_there_are_is_told(tmp_path, model_folder, given, told):
    trainer = SFTTrainer(str(model_folder), config(tmp_path, model_init_kwargs=given), train_dataset=ROWS)
    found = [note for note in trainer.loaded.notes if "made another model" in note]
    assert len(found) == len(told)
    assert all(f"num_hidden_layers made another model of the saved one: {one}" in found[0] for one in told)


@pytest.mark.filterwarnings("ignore:load_in_")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bnb_4bit_quant_type": "nf4"}, "bnb_4bit_quant_type without load_in_4bit or load_in_8bit"),
        ({"load_in_4bit": True, "bnb_4bit_quant_typ": "nf4"}, 'Did you mean "bnb_4bit_quant_type"?'),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": 3}, "bnb_4bit_quant_type"),
    ],
    ids=["alone", "misspelt", "of another type"],
)
def test_settings_of_bits_that_say_nothing_are_refused(tmp_path, given, said):
    with pytest.raises(SFTCoreError) as caught:
        SFTConfig(str(tmp_path), model_init_kwargs=given)
    assert said in str(caught.value)


def test_the_check_of_a_recipe_finds_settings_of_bits_without_bits(model_folder):
    model = {"name": str(model_folder), "init_kwargs": {"llm_int8_threshold": 5.0}}
    with pytest.raises((CheckError, ConflictError), match="llm_int8_threshold without load_in_4bit or load_in_8bit"):
        check_recipe(parse_recipe({"model": model, "data": "none.jsonl", "adapter": "lora"}))
