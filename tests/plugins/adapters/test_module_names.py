"""Names of modules that the model does not have are refused with the nearest, before its weights are read."""

from __future__ import annotations

import pytest
from datasets import Dataset
from peft import IA3Config, LoraConfig, get_peft_model
from sftcore_plugins.adapters._module_names import unknown_names
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from sftcore import CheckError, ModelError, SFTConfig, SFTTrainer
from tests.conftest import alpaca_rows, make_llama


def config(folder, **fields):
    defaults = {
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 1, "save_strategy": "no",
        "gradient_checkpointing": False,
    }  # fmt: skip
    return SFTConfig(str(folder / "out"), **{**defaults, **fields})


@pytest.fixture
def rows():
    return Dataset.from_list(alpaca_rows(4))


@pytest.fixture
def no_weights(monkeypatch):
    """No weight may be read."""

    def read(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", classmethod(read))


WRONG = {
    "a target": ({"target_modules": ["q_prj", "v_proj"]}, r'target_modules names "q_prj".*Did you mean "q_proj"\?'),
    "the other one": ({"target_modules": ["q_proj", "vproj"]}, r'"vproj".*Did you mean "v_proj"\?'),
    "a target with a parent": ({"target_modules": ["self_atn.q_proj"]}, r'Did you mean "self_attn\.q_proj"\?'),
    "saved": (
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_token"]},
        r'modules_to_save names "embed_token".*Did you mean "embed_tokens"\?',
    ),
    "the head": ({"target_modules": ["q_proj"], "modules_to_save": ["lmhead"]}, r'Did you mean "lm_head"\?'),
    "rows of tokens": (
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_token": [1]}},
        r'trainable_token_indices names "embed_token".*Did you mean "embed_tokens"\?',
    ),
    "a name as a text": (
        {"target_modules": "q_proj"},
        r'regular expression of whole names.*Write a list: \["q_proj"\]',
    ),
    "all-linear misspelt": ({"target_modules": "all_linear"}, r'Did you mean "all-linear"\?'),
    "all layers in another tool's words": ({"target_modules": "all"}, r"Write target_modules: all-linear"),
    "all-linear in a list": ({"target_modules": ["all-linear"]}, r"Write target_modules: all-linear"),
    "names with commas": ({"target_modules": "q_proj, v_proj"}, r'Write a list: \["q_proj", "v_proj"\]'),
    "a pattern": ({"target_modules": r".*\.attn\.(q|v)_proj"}, r"matches the whole name of no module.*q_proj"),
    "no pattern": ({"target_modules": "(q_proj"}, "is not a regular expression"),
    "excluded": ({"exclude_modules": ["o_prj"]}, r'exclude_modules names "o_prj".*Did you mean "o_proj"\?'),
    "excluded by a pattern": (
        {"exclude_modules": r"model\.layer\.0.*"},
        r"exclude_modules .* matches the whole name of no module",
    ),
    "excluded by a text": ({"exclude_modules": "o_proj"}, r'exclude_modules "o_proj" .*Write a list: \["o_proj"\]'),
    "ranks": ({"rank_pattern": {"q_prj": 4}}, r'rank_pattern names "q_prj".*Did you mean "q_proj"\?'),
    "scales": ({"alpha_pattern": {"layers.0.self_attn.vproj": 4}}, r'alpha_pattern names "layers.0.self_attn.vproj"'),
    "no pattern of ranks": ({"rank_pattern": {"(q_proj": 4}}, r'rank_pattern: "\(q_proj" is not a regular expression'),
    "saved, as a text": (
        {"target_modules": ["q_proj"], "modules_to_save": "lm_head"},
        r'modules_to_save is the text "lm_head", and a list is wanted. Write a list: \["lm_head"\]',
    ),
    "layers": ({"layers_to_transform": [0, 2]}, "layers_to_transform names layer 2, and the model has layers 0 to 1"),
    "a layer": ({"layers_to_transform": -1}, "layers_to_transform names layer -1"),
    "where the layers are": (
        {"layers_to_transform": [0], "layers_pattern": "blocks"},
        'no layers of the model are numbered behind "blocks"',
    ),
    "another architecture": ({"target_modules": ["query_key_value"]}, r'"query_key_value".*Its layers: .*q_proj'),
}


@pytest.mark.parametrize("name", WRONG)
def test_before_weights_are_read(tmp_path, model_folder, rows, no_weights, name):
    options, said = WRONG[name]
    options = {"target_modules": ["q_proj", "v_proj", "o_proj"], **options}
    peft_config = LoraConfig(r=2, task_type="CAUSAL_LM", **options)
    with pytest.raises(CheckError, match=said) as error:
        SFTTrainer(str(model_folder), config(tmp_path), train_dataset=rows, peft_config=peft_config)
    assert "\n" not in str(error.value).strip()


@pytest.mark.parametrize("name", ["a target", "saved"])
def test_in_the_options_of_a_recipe_too(tmp_path, model_folder, rows, no_weights, name):
    options, said = WRONG[name]
    args = config(tmp_path, plugins={"adapter": {"lora": {"r": 2, **options}}})
    with pytest.raises(CheckError, match=said):
        SFTTrainer(str(model_folder), args, train_dataset=rows)


@pytest.mark.parametrize("name", ["a target", "saved", "a pattern"])
def test_of_a_ready_model(tmp_path, tokenizer, rows, name):
    options, said = WRONG[name]
    peft_config = LoraConfig(r=2, task_type="CAUSAL_LM", **options)
    with pytest.raises(CheckError, match=said):
        SFTTrainer(
            make_llama(tokenizer), config(tmp_path), train_dataset=rows, processing_class=tokenizer,
            peft_config=peft_config,
        )  # fmt: skip


def test_where_only_loading_tells_it_is_refused_then(tmp_path, model_folder, rows, monkeypatch):
    monkeypatch.setattr("sftcore.train.trainer.skeleton_of", lambda model, plan: None)
    peft_config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_token"])
    with pytest.raises(ModelError, match=r'Did you mean "embed_tokens"\?'):
        SFTTrainer(str(model_folder), config(tmp_path), train_dataset=rows, peft_config=peft_config)


@pytest.mark.parametrize(
    "peft_config",
    [
        LoraConfig(target_modules="all-linear"),
        LoraConfig(target_modules=["q_proj", "layers.1.self_attn.v_proj", "model.layers.0.mlp.up_proj"]),
        LoraConfig(target_modules=r".*\.(q|v)_proj", modules_to_save=["lm_head", "norm", "self_attn.o_proj"]),
        LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1, 2]),
        LoraConfig(),
        LoraConfig(
            target_modules=["q_proj", "v_proj"],
            rank_pattern={r"layers\.0\.self_attn\.q_proj": 4, "^model.*v_proj": 2},
            alpha_pattern={"q_proj": 8},
            exclude_modules=["layers.1.self_attn.v_proj"],
            layers_to_transform=[0, 1],
            layers_pattern=["layers"],
        ),
        LoraConfig(target_modules=["q_proj"], exclude_modules=r".*layers\.1\..*", layers_to_transform=0),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ],
    ids=["all linear", "by ends", "a pattern", "rows", "by default", "patterns", "excluded by a pattern", "IA3"],
)
def test_what_peft_finds_is_accepted(tmp_path, model_folder, rows, peft_config):
    peft_config.task_type = "CAUSAL_LM"
    trainer = SFTTrainer(str(model_folder), config(tmp_path), train_dataset=rows, peft_config=peft_config)
    assert any(parameter.requires_grad for parameter in trainer.model.parameters())


def test_experts_are_found_by_the_names_that_they_had_before(tokenizer):
    small = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    model = MixtralForCausalLM(small)
    names = [name for name, _ in model.named_modules() if name]
    asked = LoraConfig(r=2, target_modules=["q_proj", "w1", "w3"], task_type="CAUSAL_LM")
    assert not list(unknown_names(asked.to_dict(), names))
    assert any("experts" in name and "lora" in name for name, _ in get_peft_model(model, asked).named_parameters())


def test_nothing_is_left_of_the_skeleton_in_the_model(tmp_path, model_folder, rows):
    trainer = SFTTrainer(str(model_folder), config(tmp_path), train_dataset=rows, peft_config=LoraConfig(r=2))
    assert not any(parameter.is_meta for parameter in trainer.model.parameters())
    own = AutoModelForCausalLM.from_pretrained(model_folder)
    assert all(
        parameter.equal(dict(own.named_parameters())[name.removeprefix("base_model.model.").replace("base_layer.", "")])
        for name, parameter in trainer.model.named_parameters()
        if "lora_" not in name
    )


def test_what_is_offered_can_be_adapted(llama):
    names = [name for name, _ in llama.named_modules() if name]
    (problem,) = unknown_names({"target_modules": ["c_attn"]}, names)
    offered = problem.fix.removeprefix("Its layers: ").removesuffix(".").split(", ")
    linear = {name.rpartition(".")[2] for name, one in llama.named_modules() if type(one).__name__ == "Linear"}
    assert set(offered) == {*linear, "embed_tokens"}
    assert "self_attn" not in problem.what
