"""What an adapter leaves of the model that it is put around, seen without a run."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from sftcore import LoadedModel
from sftcore.model.verify.base_kept import Base, layers_of
from tests.conftest import make_llama


@pytest.fixture
def loaded(tokenizer):
    return LoadedModel(make_llama(tokenizer), tokenizer)


def fault(loaded, change, model=None):
    """What is wrong once this was done to the model, or once another is returned."""
    base = Base.of(loaded)
    made = change(loaded.model)
    return base.fault_of(attrs.evolve(loaded, model=loaded.model if made is None else made))


def reversed_layers(model):
    model.model.layers = torch.nn.ModuleList(reversed(model.model.layers))


def first_of_two(model):
    model.model.layers = model.model.layers[:1]


def copies_of_one(model):
    model.model.layers = torch.nn.ModuleList([model.model.layers[0], copy.deepcopy(model.model.layers[0])])


def half_a_copy(model):
    made = copy.deepcopy(model)
    made.model.layers = made.model.layers[1:]
    return made


def deeper(model):
    model.config.num_hidden_layers = 3


def other_activation(model):
    model.config.hidden_act = "relu"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (reversed_layers, "has its layers in another order"),
        (first_of_two, "lacks 1 of 2 layers, such as model.layers.1"),
        (copies_of_one, "lacks 1 of 2 layers, such as model.layers.1"),
        (half_a_copy, "lacks 1 of 2 layers, such as model.layers.0"),
        (deeper, "the configuration's num_hidden_layers changed"),
        (other_activation, "the configuration's hidden_act changed"),
    ],
)
def test_what_is_gone_or_another_is_told(loaded, change, said):
    assert said in fault(loaded, change)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_lora_weights": "pissa"},
        {"use_dora": True},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"trainable_token_indices": [1, 2]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"layer_replication": [[0, 2], [1, 2]]},
    ],
    ids=str,
)
def test_peft_keeps_the_model(loaded, options):
    config = LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": "all-linear", **options})
    assert fault(loaded, lambda model: get_peft_model(model, config)) == ""


def test_a_saved_adapter_on_its_base_has_its_layers(loaded, tmp_path):
    get_peft_model(copy.deepcopy(loaded.model), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    assert fault(loaded, lambda model: PeftModel.from_pretrained(model, tmp_path)) == ""


def test_grown_embeddings_are_those_that_were_there(loaded):
    assert fault(loaded, lambda model: model.resize_token_embeddings(len(loaded.processor) + 8) and None) == ""


def test_experts_are_no_layers_of_their_own():
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=16, num_hidden_layers=2, num_local_experts=2, **sizes))
    assert [*layers_of(model)] == ["model.layers.0", "model.layers.1"]
