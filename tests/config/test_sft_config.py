"""SFTConfig and ModelConfig: TRL's names and defaults, and the fields that a recipe is checked against."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import types
import typing
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from transformers import HfArgumentParser

import sftcore
from sftcore import (
    ConflictError,
    ModelConfig,
    RecipeError,
    SFTConfig,
    SFTTrainer,
    get_peft_config,
    get_quantization_config,
)
from sftcore.config.fields import DECLARED_OTHERWISE, config_fields
from sftcore.config.recipe import load_recipe
from sftcore.core.errors import SettingsError, SFTCoreError

OWN_DEFAULTS = {
    "model_init_kwargs": None, "trust_remote_code": False, "router_aux_loss_coef": None, "chat_template_path": None,
    "dataset_text_field": "text", "dataset_kwargs": None, "dataset_num_proc": None, "eos_token": None,
    "max_length": 1024, "truncation_mode": "keep_start", "shuffle_dataset": False, "packing": False,
    "packing_strategy": "bfd", "pad_to_multiple_of": "auto", "eval_packing": None,
    "completion_only_loss": None, "assistant_only_loss": False, "loss_type": "nll", "activation_offloading": False,
    "pad_token": None, "learning_rate": 2e-5, "logging_steps": 10, "gradient_checkpointing": True,
}  # fmt: skip
TRAINER_ARGUMENTS = [
    "self", "model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class", "compute_loss_func",
    "compute_metrics", "callbacks", "optimizers", "optimizer_cls_and_kwargs", "preprocess_logits_for_metrics",
    "quantization_config", "peft_config", "formatting_func",
]  # fmt: skip
MODEL_DEFAULTS = {
    "model_name_or_path": None, "model_revision": "main", "dtype": "float32", "attn_implementation": None,
    "use_peft": False, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "lora_target_modules": None,
    "lora_target_parameters": None, "lora_modules_to_save": None, "lora_task_type": "CAUSAL_LM", "use_rslora": False,
    "use_dora": False, "load_in_8bit": False, "load_in_4bit": False, "bnb_4bit_quant_type": "nf4",
    "use_bnb_nested_quant": False, "bnb_4bit_quant_storage": None,
}  # fmt: skip


def test_own_fields_have_trls_defaults(tmp_path):
    made = SFTConfig(str(tmp_path))
    assert {name: getattr(made, name) for name in OWN_DEFAULTS} == OWN_DEFAULTS


def test_the_trainer_takes_trls_arguments_in_trls_order():
    assert list(inspect.signature(SFTTrainer.__init__).parameters)[:16] == TRAINER_ARGUMENTS


def test_model_config_has_trls_fields_and_defaults():
    made = ModelConfig()
    assert {name: getattr(made, name) for name in MODEL_DEFAULTS} == MODEL_DEFAULTS


def test_public_names_are_frozen():
    names = [
        "__version__", "ModelConfig", "SFTConfig", "SFTTrainer", "get_kbit_device_map", "get_peft_config",
        "get_quantization_config", "hookimpl", "plugin", "CheckError", "ConflictError", "DataError", "ModelError",
        "PluginError", "RecipeError", "RowError", "SFTCoreError", "AttentionBackend", "Collator", "Example",
        "Formatter", "LoadOptions", "LoadedModel",
        "LossFunction", "LossOutput", "Message", "ModelRequest", "Part", "PatchReport", "Plan", "Probe", "Problem",
        "Removable", "Row", "Selection", "Span", "TokenLoss", "TokenizedRow",
        "apply_chat_template", "is_conversational", "is_conversational_from_value", "maybe_apply_chat_template",
        "maybe_convert_to_chatml", "pack_dataset", "prepare_multimodal_messages", "get_training_chat_template",
        "clone_chat_template", "supports_tool_calling", "DataCollatorForLanguageModeling", "DatasetConfig",
        "DataCollatorForVisionLanguageModeling",
        "DatasetMixtureConfig", "DataSource", "Mixture",
        "ScriptArguments", "TrlParser", "get_dataset", "init_zero_verbose", "RichProgressCallback",
    ]  # fmt: skip
    assert sorted(sftcore.__all__) == sorted(names)
    assert all(getattr(sftcore, name) is not None for name in sftcore.__all__)


def test_fields_read_from_source_are_those_of_the_real_class():
    real = {one.name for one in dataclasses.fields(SFTConfig) if one.init}
    assert config_fields().keys() == real


def test_types_read_from_source_accept_what_the_real_class_is_annotated_with():
    hints = typing.get_type_hints(SFTConfig)
    simple = {str, int, float, bool, dict, list, type(None)}
    for name, known in config_fields().items():
        if known is None or name in DECLARED_OTHERWISE:
            continue
        is_union = typing.get_origin(hints[name]) in (typing.Union, types.UnionType)
        arms = set(typing.get_args(hints[name])) if is_union else {hints[name]}
        wanted = {typing.get_origin(arm) or arm for arm in arms}
        of_union = typing.get_origin(known) in (typing.Union, types.UnionType)
        read = {typing.get_origin(arm) or arm for arm in (typing.get_args(known) if of_union else (known,))}
        assert read & simple == wanted & simple, name


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have it")
def test_tf32_without_a_gpu_is_refused_as_what_it_is(tmp_path):
    with pytest.raises(RecipeError, match=r"SFTConfig: tf32 is a number format of NVIDIA GPUs.* Drop tf32\."):
        SFTConfig(str(tmp_path), use_cpu=True, tf32=True)


def test_bf16_is_off_on_a_cpu_unless_asked_for(tmp_path):
    assert SFTConfig(str(tmp_path), use_cpu=True).bf16 is False
    assert SFTConfig(str(tmp_path), use_cpu=True, bf16=True).bf16 is True


def test_making_a_config_warns_of_nothing(tmp_path, recwarn):
    SFTConfig(str(tmp_path))
    assert [str(one.message) for one in recwarn if issubclass(one.category, (FutureWarning, UserWarning))] == []


def test_older_names_work_and_say_their_new_one(tmp_path):
    with pytest.warns(FutureWarning, match="max_seq_length is now max_length"):
        assert SFTConfig(str(tmp_path), max_seq_length=77).max_length == 77
    with pytest.warns(FutureWarning, match="torch_dtype is now dtype"):
        made = SFTConfig(str(tmp_path), model_init_kwargs={"torch_dtype": "bfloat16"})
    assert made.model_init_kwargs == {"dtype": "bfloat16"}
    with pytest.warns(FutureWarning, match="load_in_4bit is now quantization_config"):
        made = SFTConfig(str(tmp_path), model_init_kwargs={"load_in_4bit": True})
    assert made.model_init_kwargs["quantization_config"].load_in_4bit
    with pytest.warns(FutureWarning, match="torch_dtype is now dtype"):
        assert ModelConfig(torch_dtype="float16").dtype == "float16"


def test_json_text_is_understood(tmp_path):
    made = SFTConfig(str(tmp_path), plugins='{"loss": "nll"}', model_init_kwargs='{"dtype": "bfloat16"}')
    assert made.plugins == {"loss": "nll"}
    assert made.model_init_kwargs == {"dtype": "bfloat16"}


@pytest.mark.parametrize(("given", "kept"), [("auto", "auto"), ("none", None), ("8", 8), (16, 16), (None, None)])
def test_pad_to_multiple_of_understands_what_a_command_line_gives(tmp_path, given, kept):
    assert SFTConfig(str(tmp_path), pad_to_multiple_of=given).pad_to_multiple_of == kept


def test_both_configs_parse_from_a_command_line():
    args, model = HfArgumentParser((SFTConfig, ModelConfig)).parse_args_into_dataclasses(
        ["--output_dir", "out", "--max_length", "64", "--lora_target_modules", "all-linear", "--use_peft"]
    )
    assert args.max_length == 64
    assert model.lora_target_modules == "all-linear"
    peft_config = get_peft_config(model)
    assert (peft_config.r, peft_config.lora_alpha, peft_config.target_modules) == (16, 32, "all-linear")


def test_helpers_return_none_where_nothing_is_asked_for():
    assert get_peft_config(ModelConfig()) is None
    assert get_quantization_config(ModelConfig()) is None
    four = get_quantization_config(ModelConfig(load_in_4bit=True, use_bnb_nested_quant=True, dtype="bfloat16"))
    assert four.load_in_4bit
    assert four.bnb_4bit_use_double_quant
    with pytest.raises(ConflictError, match="exclude each other"):
        ModelConfig(load_in_4bit=True, load_in_8bit=True)


TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        dataclasses.replace,
        lambda args: pickle.loads(pickle.dumps(args)),
        lambda args: pickle.loads(ForkingPickler.dumps(args)),  # what a spawned worker is given
    ],
    ids=["copy", "deepcopy", "replace", "pickle", "spawn"],
)
def test_a_copy_of_the_arguments_keeps_its_tokens(copied, tmp_path):
    """Sweeps copy the arguments, and launchers send them to the processes that they start."""
    args = SFTConfig(str(tmp_path), hub_token=TOKEN, model_init_kwargs={"token": TOKEN}, use_cpu=True)
    found = copied(args)
    assert (found.hub_token, found.model_init_kwargs) == (TOKEN, {"token": TOKEN})
    assert found.device == args.device


def test_arguments_without_secrets_have_none_and_all_else(tmp_path):
    init = {"token": TOKEN, "revision": "main"}
    args = SFTConfig(str(tmp_path), hub_token=TOKEN, model_init_kwargs=init, run_name=f"see {TOKEN}", use_cpu=True)
    found = args.without_secrets()
    assert TOKEN.encode() not in pickle.dumps(found)
    assert found.hub_token is None
    assert found.model_init_kwargs == {"token": "<not written>", "revision": "main"}
    assert found.run_name == "see <not written>"
    assert (args.hub_token, args.model_init_kwargs, args.run_name) == (TOKEN, init, f"see {TOKEN}")
    told = {"hub_token", "model_init_kwargs", "run_name"}
    same = [one.name for one in dataclasses.fields(args) if one.init and one.name not in told]
    assert {name: getattr(found, name) for name in same} == {name: getattr(args, name) for name in same}


def test_an_unknown_field_and_wrong_values_are_in_one_error(tmp_path):
    with pytest.raises(SettingsError) as caught:
        SFTConfig(str(tmp_path), learnin_rate=2, optim="x", seed="a", max_steps="b", num_train_epochs=2)
    assert [one.what.partition(" ")[0] for one in caught.value.problems] == ["unknown", "optim", "seed", "max_steps"]


@pytest.mark.parametrize("given", [12345678, ["12345678"], {"a": "12345678"}])
def test_a_token_of_another_type_is_not_echoed(tmp_path, given):
    with pytest.raises(SFTCoreError, match=r"hub_token.*\(not shown\)") as raised:
        SFTConfig(str(tmp_path), hub_token=given, use_cpu=True)
    assert "12345678" not in str(raised.value)


def test_a_token_that_is_written_in_another_way_is_not_echoed():
    with pytest.raises(SFTCoreError, match=r'"hub_token:<not written>" is not an override'):
        load_recipe(None, ["hub_token:12345678"])
