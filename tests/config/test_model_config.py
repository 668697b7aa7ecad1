"""ModelConfig: `dtype` and its older name are one setting, whichever is given and whenever."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest
import torch
import yaml
from transformers import HfArgumentParser

from sftcore import ConflictError, ModelConfig, RecipeError, get_peft_config


@pytest.mark.filterwarnings("ignore:torch_dtype is now dtype")
@pytest.mark.parametrize("value", ["bfloat16", "auto", torch.float16, None])
def test_both_names_read_the_same(value):
    """Scripts pass `getattr(torch, model_config.torch_dtype)` on to `from_pretrained`."""
    for made in (ModelConfig(torch_dtype=value), ModelConfig(dtype=value)):
        if value is not None or made.dtype is None:
            assert (made.dtype, made.torch_dtype) == (value, value)
    assert ModelConfig().torch_dtype == "float32"
    later = ModelConfig()
    later.torch_dtype = "bfloat16"
    assert (later.dtype, getattr(torch, later.torch_dtype)) == ("bfloat16", torch.bfloat16)
    later.dtype = "float16"
    assert later.torch_dtype == "float16"


@pytest.mark.filterwarnings("ignore:torch_dtype is now dtype")
def test_the_command_line_reads_both():
    (made,) = HfArgumentParser(ModelConfig).parse_args_into_dataclasses(["--torch_dtype", "bfloat16"])
    assert (made.dtype, made.torch_dtype) == ("bfloat16", "bfloat16")


def test_copies_are_the_same_and_plain():
    made = ModelConfig(dtype="float16")
    assert dataclasses.replace(made, dtype="bfloat16").torch_dtype == "bfloat16"
    for copied in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made)), dataclasses.replace(made)):
        assert copied == made
        assert copied.torch_dtype == "float16"
    values = dataclasses.asdict(made)
    assert yaml.safe_load(yaml.safe_dump(values)) == json.loads(json.dumps(values)) == values


@pytest.mark.filterwarnings("ignore:torch_dtype is now dtype")
def test_two_values_are_refused():
    with pytest.raises(ConflictError, match="dtype and torch_dtype are the same setting, got float16 and bfloat16"):
        ModelConfig(dtype="float16", torch_dtype="bfloat16")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dtype": "bf16"}, 'Did you mean "bfloat16"'),
        ({"torch_dtype": "fp16"}, 'Did you mean "float16"'),
        ({"dtype": 16}, "dtype takes str, got int 16"),
        ({"bnb_4bit_quant_type": "nf44"}, 'Did you mean "nf4"'),
        ({"lora_task_type": "SEQ_CLS"}, "Use one of: CAUSAL_LM"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch_dtype is now dtype")
def test_a_wrong_name_is_refused_with_the_nearest(fields, said):
    with pytest.raises(RecipeError, match=said):
        ModelConfig(**fields)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (["q_proj"], {"q_proj"}),
        (["self_attn.q_proj"], {"self_attn.q_proj"}),
        (["k_proj", "v_proj"], {"k_proj", "v_proj"}),
        (["all-linear"], "all-linear"),
        ([r".*\.(q|v)_proj"], r".*\.(q|v)_proj"),
    ],
)
def test_one_name_is_a_name_and_not_a_regular_expression(given, asked):
    made = ModelConfig(use_peft=True, lora_target_modules=given)
    assert get_peft_config(made).target_modules == asked
    assert get_peft_config(dataclasses.replace(made)).target_modules == asked


def test_options_of_an_adapter_that_is_not_asked_for_are_said_to_do_nothing(recwarn):
    given = ModelConfig(lora_r=8, use_dora=True, lora_target_modules=["q_proj"])
    with pytest.warns(UserWarning, match="lora_r, lora_target_modules, use_dora: without use_peft there is no adapter"):
        assert get_peft_config(given) is None
    recwarn.clear()
    assert get_peft_config(ModelConfig(lora_r=16)) is None
    assert not recwarn.list
