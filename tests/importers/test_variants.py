"""Spellings of the same thing: launchers, older names, values that scripts compute, and what only one tool means."""

from __future__ import annotations

import pytest

from sftcore.core.errors import SFTCoreError
from sftcore.importers.bring import bring
from sftcore.importers.detect import detect


def made(write, peer, name, text, **options):
    return bring(peer, write(name, text), **options)


def test_a_launcher_says_how_many_processes_and_its_module_is_not_an_option(write):
    found = made(
        write, "trl", "x.sh", "torchrun --nproc_per_node=8 train.py --model_name_or_path m --learning_rate 1e-4\n"
    )
    assert found.values["learning_rate"] == 1e-4
    assert "sftcore train --nproc 8" in found.text


def test_options_of_a_command_replace_those_of_the_file_that_it_names(write):
    write(
        "cfg.yml",
        "base_model: m\nlearning_rate: 2e-4\nmicro_batch_size: 2\ndatasets: [{path: a.jsonl, type: alpaca}]\n",
    )
    found = made(write, "axolotl", "x.sh", "accelerate launch -m axolotl.cli.train cfg.yml --learning_rate=1e-5\n")
    assert (found.values["learning_rate"], found.values["per_device_train_batch_size"]) == (1e-5, 2)
    assert "replaced by learning_rate on the command line" in found.text


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("zero2", "zero2"),
        ("examples/deepspeed/ds_z3_config.json", "zero3"),
        ("deepspeed_configs/zero3_bf16.json", "zero3"),
        ("ds_z3_offload_config.json", "zero3-offload"),
        ("ds_z2_offload_config.json", "zero2-offload"),
        ("zero2_offload", "zero2-offload"),
        ("deepspeed_configs/zero1.json", "zero1"),
        ("deepspeed_configs/zero3_bf16_cpuoffload_all.json", "zero3-offload"),
        ("my_zero2_own.json", None),
    ],
)
def test_a_configuration_of_deepspeed_that_a_tool_ships_is_meant_by_name(write, value, name):
    found = made(write, "llamafactory", "x.yaml", f"model_name_or_path: m\ndeepspeed: {value}\n")
    assert found.values.get("deepspeed") == name


@pytest.mark.parametrize(
    ("peer", "text", "dtype"),
    [
        ("llamafactory", "finetuning_type: lora\nbf16: true", "bfloat16"),
        ("llamafactory", "finetuning_type: full\nbf16: true", "float32"),
        ("llamafactory", "finetuning_type: full\npure_bf16: true", "bfloat16"),
        ("llamafactory", "finetuning_type: lora", "auto"),
        ("axolotl", "bf16: false", "float32"),
        ("axolotl", "adapter: lora\nlora_r: 8", "bfloat16"),
        ("swift", "torch_dtype: bfloat16", "bfloat16"),
        ("torchtune", "dtype: fp32", "float32"),
        ("torchtune", "batch_size: 2", "bfloat16"),
    ],
)
def test_the_dtype_of_the_weights_is_the_tools_own(write, peer, text, dtype):
    assert made(write, peer, "x.yaml", text + "\n").values["model"]["dtype"] == dtype


@pytest.mark.parametrize(
    ("peer", "text", "rows"),
    [
        ("axolotl", "base_model: m", "drop"), ("axolotl", "excess_length_strategy: truncate", "cut"),
        ("axolotl", "datasets: [{path: a, type: completion}]", "split"), ("swift", "model: m", "drop"),
        ("swift", "truncation_strategy: right", "cut"), ("llamafactory", "cutoff_len: 512", None),
    ],
)  # fmt: skip
def test_what_becomes_of_long_rows_is_the_tools_own(write, peer, text, rows):
    assert made(write, peer, "x.yaml", text + "\n").values.get("long_rows") == rows


@pytest.mark.parametrize("name", ["qwen", "llama3", "chatml"])
def test_a_template_is_known_by_its_name(write, name):
    found = made(write, "llamafactory", "x.yaml", f"model_name_or_path: m\ntemplate: {name}\n")
    assert found.values["chat_template"] == name


def test_a_template_that_is_not_known_is_named(write):
    found = made(write, "llamafactory", "x.yaml", "model_name_or_path: m\ntemplate: intern_vl\n")
    assert "chat_template" not in found.values
    assert "there is no template 'intern_vl' here" in found.text


def test_settings_of_fsdp_are_each_accounted_for(write):
    config = "fsdp_config: {fsdp_offload_params: true, fsdp_use_orig_params: false}"
    text = f"base_model: m\nfsdp: [full_shard, auto_wrap]\n{config}\n"
    found = made(write, "axolotl", "x.yml", text)
    assert found.values["fsdp"] == "full_shard auto_wrap offload"
    assert found.values["fsdp_config"] == {"use_orig_params": False}


def test_a_key_that_stands_twice_is_read_as_the_tools_do_and_named(write):
    found = made(write, "axolotl", "x.yml", "base_model: m\nlearning_rate: 1e-4\nlearning_rate: 2e-4\n")
    assert found.values["learning_rate"] == 2e-4
    assert "set again on line 3" in found.text


def test_booleans_are_those_of_yaml_1_1(write):
    found = made(write, "axolotl", "x.yml", "base_model: m\nsample_packing: yes\ntrain_on_inputs: off\n")
    assert found.values["packing"] is True


def test_a_setting_in_a_branch_is_not_taken_for_granted(write):
    script = "lr = 1e-4\nif big:\n    lr = 1e-5\nargs = SFTConfig(learning_rate=lr)\nSFTTrainer(model='m', args=args)\n"
    assert made(write, "trl", "x.py", script).values["learning_rate"] == "FILL-IN"


@pytest.mark.parametrize(
    ("name", "text", "tool"),
    [
        ("a.yml", "base_model: m\nsequence_len: 2048\n", "axolotl"),
        ("b.yaml", "model_name_or_path: m\nfinetuning_type: lora\nstage: sft\n", "llamafactory"),
        ("c.sh", "swift sft --model m\n", "swift"),
        ("d.py", "from unsloth import FastLanguageModel\n", "unsloth"),
        ("e.py", "from trl import SFTConfig\n", "trl"),
        ("f.yaml", "tokenizer: {_component_: torchtune.models.x}\n", "torchtune"),
        ("g.yaml", "model: m\ndata: d.jsonl\nlora_rank: 8\nfinetuning_type: lora\n", ""),
        ("h.yaml", "learning_rate: 1e-4\n", ""),
    ],
)
def test_whose_a_file_is(write, name, text, tool):
    assert detect(write(name, text)) == tool


def test_conversations_among_prompts_say_themselves_that_their_answers_are_trained(write):
    sources = "[{path: a, type: chat_template}, {path: b, type: alpaca}, {path: c, type: {field_output: x}}]"
    found = made(write, "axolotl", "x.yml", f"base_model: m\ndatasets: {sources}\ntrain_on_inputs: false\n")
    formats = [one["format"] for one in found.values["data"]["train"]]
    assert formats[0] == {"chat": {"trained_turns": "answers"}}
    assert formats[1] == {"alpaca": {"style": "alpaca"}}
    assert "assistant_only_loss" not in found.values


@pytest.mark.parametrize("value", ["linear", "{type: linear, factor: 2.0}"])
def test_positions_are_not_taken_for_arguments_of_loading(write, value):
    found = made(write, "llamafactory", "x.yaml", f"model_name_or_path: m\nrope_scaling: {value}\n")
    assert "init_kwargs" not in found.values["model"]
    assert "rope_parameters" in found.text


def test_values_of_the_models_configuration_are_arguments_of_loading(write):
    found = made(write, "axolotl", "x.yml", "base_model: m\noverrides_of_model_config: {attention_bias: true}\n")
    assert found.values["model"]["init_kwargs"] == {"attention_bias": True}


def test_a_source_whose_address_is_a_secret_is_to_be_filled_in(write):
    text = "base_model: m\ndatasets: [{path: 'https://u:p4ss@h/x.jsonl', type: alpaca}]\n"
    found = made(write, "axolotl", "x.yml", text)
    assert "p4ss" not in found.text
    assert found.values["data"]["train"] == {"path": "FILL-IN"}


def test_the_setting_whose_value_is_wrong_is_the_one_that_is_named(write):
    with pytest.raises(SFTCoreError, match="val_set_size is 'many', which Axolotl does not take"):
        made(write, "axolotl", "x.yml", "base_model: m\nval_set_size: many\n")


@pytest.mark.parametrize(
    ("stage", "offload", "name"),
    [(1, "none", "zero1"), (2, "none", "zero2"), (2, "cpu", "zero2-offload"), (3, "cpu", "zero3-offload")],
)  # fmt: skip
def test_a_stage_of_accelerates_file_is_a_configuration_by_name(write, stage, offload, name):
    deepspeed = f"{{zero_stage: {stage}, offload_optimizer_device: {offload}}}"
    write("acc.yaml", f"distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {deepspeed}\n")
    command = "accelerate launch --config_file acc.yaml --num_processes 4 sft.py --model_name_or_path m\n"
    found = made(write, "trl", "x.sh", command)
    assert found.values["deepspeed"] == name
    assert "--nproc 4" in found.text
    assert "--nproc 2" not in found.text


@pytest.mark.parametrize(("said", "ours"), [("zero0", None), ("zero1", "zero1"), ("zero2_offload", "zero2-offload")])
def test_configurations_that_swift_has_by_name_are_those_here(write, said, ours):
    found = made(write, "swift", "x.sh", f"swift sft --model m --dataset a.jsonl --deepspeed {said}\n")
    assert found.values.get("deepspeed") == ours


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("trainer.train(resume_from_checkpoint=True)", "resume_from_checkpoint: auto"),
        ("model.save_pretrained_merged('out', tokenizer, save_method='merged_16bit')", "sftcore merge"),
        ("model.save_pretrained_gguf('out', tokenizer, quantization_method='q4_k_m')", "GGUF"),
        ("model.push_to_hub('me/m', token='abcd1234')", "hub_model_id"),
        ("trainer.train()", ""), ("trainer.train(resume_from_checkpoint=False)", ""), ("model.train()", ""),
    ],
)  # fmt: skip
def test_calls_after_the_training_are_accounted_for(write, call, words):
    script = f"from trl import SFTTrainer\ntrainer = SFTTrainer(model='m')\n{call}\n"
    named = [line for line in made(write, "trl", "x.py", script).account if line.place.line == 3]
    assert [line.outcome for line in named] == (["named"] if words else [])
    assert all(words in line.words and "abcd" not in line.shown for line in named)


@pytest.mark.parametrize(
    ("options", "order"),
    [("--train_dataloader_shuffle false", "sequential"), ("", None), ("--train_dataloader_shuffle true", None)],
)
def test_rows_in_the_order_of_the_file_stay_so(write, options, order):
    found = made(write, "swift", "x.sh", f"swift sft --model m --dataset a.jsonl {options}\n")
    assert found.values.get("train_sampling_strategy") == order


def test_what_begins_a_generated_answer_marks_no_answer_of_a_text(write):
    found = made(write, "swift", "x.sh", "swift sft --model m --dataset a.jsonl --response_prefix '<think>'\n")
    assert "response_marker" not in found.values
    assert "It begins what is generated" in found.text


def test_tokens_with_commas_between_them_are_several(write):
    text = 'model_name_or_path: m\nnew_special_tokens: "<|a|>,<|b|>"\n'
    assert made(write, "llamafactory", "x.yaml", text).values["new_tokens"] == ["<|a|>", "<|b|>"]


@pytest.mark.parametrize(("given", "evaluated"), [("eval_dataset=ev", "b.jsonl"), ("", None)])
def test_the_second_of_two_data_sets_is_evaluated_on_where_the_trainer_is_given_one(write, given, evaluated):
    load = "load_dataset('json', data_files='{}', split='train')"
    script = (
        f"tr = {load.format('a.jsonl')}\nev = {load.format('b.jsonl')}\nSFTTrainer('m', train_dataset=tr, {given})\n"
    )
    data = made(write, "trl", "x.py", script).values["data"]
    assert (data["train"], data.get("eval")) == ("a.jsonl", evaluated)
