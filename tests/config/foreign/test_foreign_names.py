"""Every name that 114 public configurations of seven tools write: taken, or answered with the key that means it here.

What is expected stands here by hand, from the tools' documentation and ours.
"""

from __future__ import annotations

import warnings

import pytest
from click.testing import CliRunner

from sftcore.cli import cli
from sftcore.config.fields import config_fields
from sftcore.config.foreign.spelling import misspelt
from sftcore.config.foreign.table import lookup, names
from sftcore.config.near_names import offer
from sftcore.config.recipe import SECTIONS, parse_recipe
from sftcore.config.sft_config import SFTConfig
from sftcore.core.errors import SFTCoreError

MEANT = {
    "adapter.lora.r": "lora_r lora_rank",
    "adapter.lora.lora_alpha": "lora_alpha",
    "adapter.lora.lora_dropout": "lora_dropout",
    "adapter.lora.target_modules": "lora_target_modules lora_target_linear lora_target",
    "adapter.lora.arguments.bias": "bias",
    "adapter.lora.arguments.loftq_config": "loftq_config",
    "adapter.lora.use_rslora": "use_rslora",
    "adapter.lora.modules_to_save": "lora_modules_to_save additional_target",
    "adapter.qlora.bits": "load_in_4bit load_in_8bit quantization_bit",
    "adapter": "use_peft finetuning_type",
    "model.dtype": "torch_dtype dtype",
    "model.init_kwargs.device_map": "device_map",
    "model": "base_model model_name_or_path",
    "max_length": "sequence_len cutoff_len",
    "attention": "flash_attention flash_attn attn_impl attn_implementation",
    "lr_scheduler_type": "lr_scheduler",
    "lr_scheduler_kwargs.min_lr_rate": "cosine_min_lr_ratio",
    "data.eval_fraction": "val_set_size val_size split_dataset_ratio",
    "data.eval": "test_datasets val_dataset eval_dataset",
    "data": "datasets dataset",
    "eval_packing": "eval_sample_packing",
    "packing": "sample_packing",
    "pad_to_multiple_of": "pad_to_sequence_len",
    "completion_only_loss": "train_on_inputs train_on_prompt",
    "assistant_only_loss": "train_on_responses_only",
    "format": "formatting",
    "dataset_num_proc": "preprocessing_num_workers dataset_processes",
    "dataset_cache": "overwrite_cache load_from_cache_file",
    "use_liger_kernel": "enable_liger_kernel",
    "kernel.liger.rope": "liger_rope",
    "kernel.liger.rms_norm": "liger_rms_norm",
    "kernel.liger.mlp": "liger_swiglu liger_glu_activation",
    "loss": "liger_fused_linear_cross_entropy",
    "resume_from_checkpoint": "auto_resume_from_checkpoints",
    "freeze_vision_tower": "freeze_vit freeze_aligner",
    "activation_offloading": "enable_activation_offloading",
    "callbacks": "callback",
    "optim": "optimizer",
    "per_device_train_batch_size": "micro_batch_size batch_size",
    "eos_token": "special_tokens",
    "data.rows": "max_samples max_train_samples",
    "run_name": "wandb_name",
    "report_to": "use_wandb",
}
"""The key of a recipe that is offered for each of these names."""

NEW = {
    "chat_template": "template", "new_tokens": "tokens", "tracker.project": "wandb_project swanlab_project",
    "tracker.entity": "wandb_entity", "long_rows": "truncation_strategy excess_length_strategy",
    "system_prompt": "system default_system", "optimizer_in_backward": "optimizer_in_bwd",
    "response_marker": "response_template response_part", "instruction_marker": "instruction_part",
}  # fmt: skip
"""The same for keys that not every version has."""

SAID = {
    "plot_loss": "metrics.jsonl", "dataset_prepared_path": "$SFTCORE_CACHE", "model_type": "the model's own",
    "tokenizer_type": "the model's own", "is_llama_derived_model": "the model's own",
    "is_mistral_derived_model": "the model's own", "roles_to_train": "trained_turns",
    "conversation_style": "options of the format", "save_pretrained_merged": "sftcore merge RUN",
    "merge_and_unload": "sftcore merge RUN", "save_pretrained_gguf": "convert_hf_to_gguf.py",
    "eval_max_new_tokens": "sftcore chat RUN", "eval_table_size": "sftcore chat RUN",
    "predict_with_generate": "sftcore chat RUN", "mask_history": "trained_turns",
}  # fmt: skip
"""What the answer says of names for which there is no key."""

TAKEN = {
    "warmup_ratio": 0.05, "group_by_length": True, "use_liger": False, "max_seq_length": 512, "save_safetensors": True,
    "neftune_noise_alpha": 5, "resume_from_checkpoint": "auto", "overwrite_output_dir": True, "bf16": "auto",
    "fsdp": ["full_shard", "auto_wrap"], "logging_steps": 1, "optim": "adamw_8bit", "eval_packing": False,
    "early_stopping_patience": 3, "lr_scheduler_type": "cosine", "freeze_vision_tower": True,
}  # fmt: skip
"""Names and values of theirs that a recipe takes."""

LISTED = [(name, key) for key, listed in {**MEANT, **NEW}.items() for name in listed.split()]


def refused(name, value=1):
    with pytest.raises(SFTCoreError) as caught:
        parse_recipe({"model": "m", "data": "d.jsonl", name: value})
    return str(caught.value)


def exists(key):
    return key.partition(".")[0] in {*SECTIONS, *config_fields()}


@pytest.mark.parametrize(("name", "key"), LISTED)
def test_a_name_of_another_tool_is_answered_with_the_key_of_a_recipe(name, key):
    said = refused(name)
    assert f'unknown key "{name}"' in said
    assert (f'Did you mean "{key}"?' in said) if exists(key) else "Did you mean" not in said
    assert said.count("Did you mean") <= 1


@pytest.mark.parametrize(("name", "said"), SAID.items())
def test_a_name_without_a_key_is_answered_with_what_to_do(name, said):
    answer = refused(name)
    assert said in answer
    assert "Did you mean" not in answer


@pytest.mark.parametrize(("name", "value"), TAKEN.items())
def test_names_and_values_that_are_taken(name, value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        recipe = parse_recipe({"model": "m", "data": "d.jsonl", name: value})
    assert set(recipe.training) <= set(config_fields())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora_r", 'SFTConfig(plugins={"adapter": {"lora": {"r": …}}}), or give SFTTrainer a peft_config.'),
        ("load_in_4bit", 'SFTConfig(plugins={"adapter": {"qlora": {"bits": …}}})'),
        ("use_peft", "It belongs to SFTTrainer, as peft_config."),
        ("val_set_size", "in a recipe it is data.eval_fraction"),
        ("val_dataset", "It belongs to SFTTrainer, as eval_dataset."),
        ("dataset_name", "It belongs to SFTTrainer, as train_dataset."),
        ("model_name_or_path", "It belongs to SFTTrainer, as model."),
        ("torch_dtype", 'SFTConfig(model_init_kwargs={"dtype": …})'),
        ("device_map", 'SFTConfig(model_init_kwargs={"device_map": …})'),
        ("flash_attention", 'SFTConfig(plugins={"attention": …})'),
        ("cosine_min_lr_ratio", 'lr_scheduler_kwargs={"min_lr_rate": …}'),
        ("sequence_len", 'Did you mean "max_length"?'),
        ("micro_batch_size", 'Did you mean "per_device_train_batch_size"?'),
        ("plot_loss", "metrics.jsonl"),
        ("formatting", 'plugins={"format": …}'),
    ],
)
def test_python_is_answered_with_what_python_has(name, said):
    with pytest.raises(SFTCoreError) as caught:
        SFTConfig("out", use_cpu=True, **{name: 1})
    assert said in str(caught.value)


def test_python_offers_no_field_of_another_meaning():
    known = config_fields()
    for name in names():
        found, entry = offer(name, known), lookup(name)
        assert found.key in ("", entry.ours), name
        assert found.key or found.note or not exists(entry.ours), name


@pytest.mark.parametrize(("name", "key"), [("lora_r", "adapter.lora.r"), ("sequence-len", "max_length")])
def test_an_option_of_the_command_line_is_answered_too(name, key):
    shown = CliRunner().invoke(cli, ["train", f"--{name}", "8"]).output
    assert f"{key}=…" in " ".join(shown.split())


def test_the_adapter_of_the_recipe_is_the_one_that_is_named():
    raw = {"model": "m", "data": "d.jsonl", "adapter": "qlora", "lora_rank": 8}
    with pytest.raises(SFTCoreError, match=r'Did you mean "adapter\.qlora\.r"'):
        parse_recipe(raw)
    with pytest.raises(SFTCoreError, match=r'Did you mean "adapter\.qlora\.r"'):
        parse_recipe({**raw, "adapter": {"qlora": {"bits": 8}}})
    for empty in ({}, [], None, 3):
        with pytest.raises(SFTCoreError):
            parse_recipe({**raw, "adapter": empty})


def test_several_are_answered_at_once():
    raw = {"model": "m", "data": "d", "lora_r": 8, "plot_loss": True, "zebra": 1, "val_size": 0.1}
    with pytest.raises(SFTCoreError) as caught:
        parse_recipe(raw)
    said = str(caught.value)
    assert 'unknown key "lora_r" (did you mean "adapter.lora.r"?)' in said
    assert 'unknown key "plot_loss" (report.html and loss.svg' in said
    assert 'unknown key "zebra"; ' in said
    assert 'unknown key "val_size" (did you mean "data.eval_fraction"? It is a share below 1;' in said


# --- Names that are only spelt alike ---------------------------------------------------------------------------------
def test_a_field_is_never_offered_for_another_one():
    """Each field is a name of its own meaning: with it left out, what is nearest means something else."""
    known = {*SECTIONS, *config_fields()}
    assert {name: near for name in known if (near := misspelt(name, known - {name}))} == {}


def test_a_name_of_another_tool_is_no_misspelling_of_ours():
    known = {*SECTIONS, *config_fields()}
    wrong = {
        name: near
        for name in names()
        if (near := misspelt(name, known)) and near not in (lookup(name).ours, lookup(name).ours.partition(".")[0])
    }
    first = {"activation_checkpoint": "activation_checkpointing", "adapters": "adapter", "trackers": "tracker"}
    assert wrong == first  # an exact name goes before one that is spelt nearly so


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lerning_rate", "learning_rate"), ("learningRate", "learning_rate"), ("learning-rate", "learning_rate"),
        ("Learning_Rate", "learning_rate"), ("max_lenght", "max_length"), ("maxlength", "max_length"),
        ("num_train_epoch", "num_train_epochs"), ("gradient_acc_steps", "gradient_accumulation_steps"),
        ("lr_sched_type", "lr_scheduler_type"), ("eval_stps", "eval_steps"), ("grad_norm", "max_grad_norm"),
        ("weight_deacy", "weight_decay"), ("adaptor", "adapter"), ("packng", "packing"), ("los", "loss"),
        ("lora_alhpa", "adapter.lora.lora_alpha"), ("seqeunce_len", "max_length"),
        ("loraAlpha", "adapter.lora.lora_alpha"),
    ],
)  # fmt: skip
def test_a_slip_is_understood(written, meant):
    assert f'Did you mean "{meant}"?' in refused(written)


@pytest.mark.parametrize("written", ["mode", "zebra", "output_steps", "min_length_of_all", "tokens_per_batch", "node"])
def test_what_is_near_to_nothing_gets_no_hint(written):
    assert "Did you mean" not in refused(written)


# --- Keys at the wrong place -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"model": {"name": "m", "torch_dtyp": "x"}, "data": "d"}, 'Did you mean "dtype"?'),
        ({"model": {"path": "m"}, "data": "d"}, 'Did you mean "name"?'),
        ({"model": {"ID": "m"}, "data": "d"}, 'Did you mean "name"?'),
        ({"model": {"model_name_or_path": "m"}, "data": "d"}, 'Did you mean "name"?'),
        ({"model": {"base_modle": "m"}, "data": "d"}, 'Did you mean "name"?'),
        ({"model": {"checkpoint": "m"}, "data": "d"}, 'Did you mean "name"?'),
        ({"model": {"name": "m", "path": "m"}, "data": "d"}, 'unknown key "path". Known keys: '),
        ({"model": {"name": "m", "checkpoint": "m"}, "data": "d"}, 'Did you mean "resume_from_checkpoint"?'),
        ({"model": {"name": "m", "load_in_4bit": True}, "data": "d"}, 'Did you mean "adapter.qlora.bits"?'),
        ({"model": {"name": "m", "max_length": 8}, "data": "d"}, '"max_length" stands at the top of a recipe'),
        ({"model": {"name": "m", "device_map": "auto"}, "data": "d"}, 'Did you mean "model.init_kwargs.device_map"?'),
        ({"model": "m", "data": {"train": "d", "val_set_size": 0.1}}, 'Did you mean "eval_fraction"?'),
        ({"model": "m", "data": {"train": "d", "packing": True}}, '"packing" stands at the top of a recipe'),
        ({"model": "m", "data": {"train": "d", "sequence_len": 9}}, 'Did you mean "max_length"?'),
        ({"model": "m", "data": {"train": "d", "max_samples": 9}}, 'Did you mean "rows"?'),
        ({"model": "m", "data": [{"path": "d", "type": "alpaca"}]}, 'Did you mean "format"?'),
        ({"model": "m", "data": [{"path": "d", "ds_type": "json"}]}, 'unknown key "ds_type"'),
        ({"model": "m", "data": [{"path": "d", "chat_template": "chatml"}]}, 'unknown key "chat_template"'),
    ],
)
def test_a_key_in_a_section_is_answered_with_its_place(raw, said):
    with pytest.raises(SFTCoreError) as caught:
        parse_recipe(raw)
    assert said in str(caught.value)
