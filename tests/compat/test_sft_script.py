"""Every option that TRL's script for fine-tuning has is read: by `sftcore sft`, and by the example that shows how."""

from __future__ import annotations

import dataclasses
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from datasets import IterableDataset

from sftcore import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTTrainer
from sftcore.compat.sft_script import ACCELERATE_CONFIGS, launcher_options, parse, run
from sftcore.core.errors import SettingsError, SFTCoreError
from sftcore.util.words import without_secrets_in
from tests import commands
from tests.conftest import alpaca_rows

EXAMPLE = Path(__file__).parents[2] / "examples" / "scripts" / "sft.py"
Run = Callable[..., SFTTrainer]


def rows(count: int, start: int = 0) -> str:
    return "".join(json.dumps(row) + "\n" for row in alpaca_rows(start + count)[start:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data set of two configurations, the first with the splits train (12 rows), test (3) and held (4)."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("train", 12), ("test", 3), ("held", 4), ("other", 5)):
        (folder / f"{name}.jsonl").write_text(rows(count))
    splits = "".join(f"  - {{split: {name}, path: {name}.jsonl}}\n" for name in ("train", "test", "held"))
    other = "- config_name: other\n  data_files: other.jsonl\n"
    head = f"---\nconfigs:\n- config_name: first\n  default: true\n  data_files:\n{splits}{other}---\n"
    (folder / "README.md").write_text(head)
    return folder


@pytest.fixture(params=["sftcore sft", "examples/scripts/sft.py"])
def ran(request, monkeypatch, tmp_path, model_folder, folder) -> Run:
    """Run one of the two programs; the trainer that it made."""

    def program(*words: Any, data: Any = folder, model: Any = model_folder) -> SFTTrainer:
        base = ["--output_dir", tmp_path / "out", "--max_steps", 1, "--use_cpu", "--report_to", "none"]
        base += ["--dataset_name", data] if data else []
        base += ["--model_name_or_path", model] if model else []
        given = [str(word) for word in (*base, *words)]
        seen: list[SFTTrainer] = []
        if request.param == "sftcore sft":
            run(given, seen.append)
        else:
            train = SFTTrainer.train

            def watched(self: SFTTrainer, *args: Any, **kwargs: Any) -> Any:
                seen.append(self)
                return train(self, *args, **kwargs)

            monkeypatch.setattr(SFTTrainer, "train", watched)
            monkeypatch.setattr("sys.argv", ["sft.py", *given])
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        return seen[0]

    return program


def lora(trainer: SFTTrainer) -> Any:
    return trainer.model.peft_config["default"]


def quantised(trainer: SFTTrainer) -> Any:
    return trainer.model.get_base_model().config.quantization_config


BITS = ["--use_peft", "--lora_target_modules", "q_proj", "v_proj"]
EVALUATES = ["--eval_strategy", "steps", "--eval_steps", "1"]
OPTIONS: dict[str, tuple[list[str], Callable[[SFTTrainer], Any], Any]] = {
    "dataset_name": ([], lambda t: len(t.train_dataset), 12),
    "dataset_config": (["--dataset_config", "other"], lambda t: len(t.train_dataset), 5),
    "dataset_train_split": (["--dataset_train_split", "held"], lambda t: len(t.train_dataset), 4),
    "dataset_test_split": (["--dataset_test_split", "held", *EVALUATES], lambda t: len(t.eval_dataset), 4),
    "dataset_streaming": (["--dataset_streaming"], lambda t: isinstance(t.train_dataset, IterableDataset), True),
    "streaming": (["--streaming"], lambda t: isinstance(t.train_dataset, IterableDataset), True),
    "ignore_bias_buffers": (["--ignore_bias_buffers"], lambda t: t.model._ddp_params_and_buffers_to_ignore, []),
    "test_split_size": (
        ["--test_split_size", "5", *EVALUATES], lambda t: (len(t.train_dataset), len(t.eval_dataset)), (7, 5)
    ),
    "model_name_or_path": ([], lambda t: t.model.config.hidden_size, 32),
    "model_revision": (["--model_revision", "v2"], lambda t: t.setup.plan.model.revision, "v2"),
    "dtype": (["--dtype", "bfloat16"], lambda t: t.model.dtype, torch.bfloat16),
    "torch_dtype": (["--torch_dtype", "bfloat16"], lambda t: t.model.dtype, torch.bfloat16),
    "attn_implementation": (
        ["--attn_implementation", "eager"], lambda t: t.model.config._attn_implementation, "eager"
    ),
    "use_peft": (["--use_peft"], lambda t: lora(t).peft_type.value, "LORA"),
    "lora_r": (["--use_peft", "--lora_r", "3"], lambda t: lora(t).r, 3),
    "lora_alpha": (["--use_peft", "--lora_alpha", "7"], lambda t: lora(t).lora_alpha, 7),
    "lora_dropout": (["--use_peft", "--lora_dropout", "0.5"], lambda t: lora(t).lora_dropout, 0.5),
    "lora_target_modules": (
        ["--use_peft", "--lora_target_modules", "k_proj", "v_proj"],
        lambda t: lora(t).target_modules, {"k_proj", "v_proj"},
    ),
    "lora_target_parameters": (
        [*BITS, "--lora_dropout", "0", "--lora_target_parameters", "mlp.up_proj.weight"],
        lambda t: lora(t).target_parameters, ["mlp.up_proj.weight"],
    ),
    "lora_modules_to_save": (
        ["--use_peft", "--lora_modules_to_save", "lm_head"], lambda t: lora(t).modules_to_save, ["lm_head"]
    ),
    "lora_task_type": (["--use_peft", "--lora_task_type", "CAUSAL_LM"], lambda t: lora(t).task_type, "CAUSAL_LM"),
    "use_rslora": (["--use_peft", "--use_rslora"], lambda t: lora(t).use_rslora, True),
    "use_dora": (["--use_peft", "--use_dora"], lambda t: lora(t).use_dora, True),
    "load_in_8bit": ([*BITS, "--load_in_8bit"], lambda t: quantised(t).load_in_8bit, True),
    "load_in_4bit": ([*BITS, "--load_in_4bit"], lambda t: quantised(t).load_in_4bit, True),
    "bnb_4bit_quant_type": (
        [*BITS, "--load_in_4bit", "--bnb_4bit_quant_type", "fp4"], lambda t: quantised(t).bnb_4bit_quant_type, "fp4"
    ),
    "use_bnb_nested_quant": (
        [*BITS, "--load_in_4bit", "--use_bnb_nested_quant"], lambda t: quantised(t).bnb_4bit_use_double_quant, True
    ),
    "bnb_4bit_quant_storage": (
        [*BITS, "--load_in_4bit", "--bnb_4bit_quant_storage", "float32"],
        lambda t: quantised(t).bnb_4bit_quant_storage, torch.float32,
    ),
    # of SFTConfig, where the script itself does something with them
    "model_init_kwargs": (
        ["--model_init_kwargs", '{"attn_implementation": "eager", "dtype": "bfloat16"}', "--dtype", "float32"],
        lambda t: (t.model.dtype, t.model.config._attn_implementation), (torch.bfloat16, "eager"),
    ),
    "early_stopping_patience": (
        ["--early_stopping_patience", "2", *EVALUATES],
        lambda t: [type(one).__name__ for one in t.callback_handler.callbacks].count("EarlyStoppingCallback"), 1,
    ),
}  # fmt: skip


TOGETHER = (
    ("dataset_name", "model_name_or_path", "dataset_test_split", "ignore_bias_buffers", "model_revision", "dtype",
     "attn_implementation", "early_stopping_patience"),
    ("dataset_config", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules",
     "lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora"),
    ("dataset_train_split", "torch_dtype"), ("dataset_streaming", "lora_target_parameters"),
    ("streaming", "load_in_8bit"), ("model_init_kwargs",),
    ("test_split_size", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
)  # fmt: skip
"""Options that one run can have."""


@pytest.mark.parametrize("options", TOGETHER, ids=[one[0] for one in TOGETHER])
def test_options_are_read(ran, options):
    trainer = ran(*(word for option in options for word in OPTIONS[option][0]))
    assert {option: OPTIONS[option][1](trainer) for option in options} == {
        option: OPTIONS[option][2] for option in options
    }


def test_the_table_has_every_option_of_the_script():
    kinds = (ScriptArguments, ModelConfig, DatasetMixtureConfig)
    fields = {one.name for kind in kinds for one in dataclasses.fields(kind)}
    assert fields - set(OPTIONS) == {"datasets"}  # in a YAML file alone, below
    assert sorted(option for options in TOGETHER for option in options) == sorted(OPTIONS)


def test_several_data_sets_of_a_file_train_together(ran, folder, write):
    file = write("c.yaml", f"datasets:\n- path: {folder / 'train.jsonl'}\n- path: {folder / 'held.jsonl'}\nseed: 5\n")
    trainer = ran("--config", file, data=None)
    assert (len(trainer.train_dataset), trainer.args.seed) == (16, 5)
    with_split = ran("--config", file, "--test_split_size", "0.25", *EVALUATES, "--overwrite_output_dir", data=None)
    assert (len(with_split.train_dataset), len(with_split.eval_dataset)) == (12, 4)


def test_the_run_goes_on_from_its_checkpoint(ran, tmp_path):
    ran("--save_steps", "1")
    trainer = ran("--max_steps", "2", "--resume_from_checkpoint", tmp_path / "out" / "checkpoint-1")
    assert [entry["step"] for entry in trainer.state.log_history if "train_runtime" in entry][-1:] == [2]
    assert trainer.resumption.first_step == 1


# --- What is wrong is one line --------------------------------------------------------------------------------------
@pytest.fixture
def faulty(write) -> Path:
    return write("faulty.jsonl", rows(3) + '{"instruction": "x"\n')


@pytest.mark.parametrize(
    ("words", "kept", "said"),
    [
        ([], {"model": None}, "no model is named. Add: --model_name_or_path MODEL"),
        ([], {"data": None}, "--dataset_name train.jsonl"),
        ([], {"data": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ([], {"data": "faulty.jsonl"}, "line 4"),
        (["--dataset_train_split", "tran"], {}, 'there is no split "tran"'),
        (["--dataset_test_split", "tset", *EVALUATES], {}, 'there is no split "tset"'),
        (["--test_split_size", "12", *EVALUATES], {}, "a number of rows below the 12 that there are, got 12"),
        (["--test_split_size", "2.5"], {}, "got 2.5"),
        (["--test_split_size", "0"], {}, "got 0"),
        (["--attn_implementation", "eagr"], {}, 'Did you mean "eager"?'),
        (["--lerning_rate", "1"], {}, 'Did you mean "learning_rate"?'),
    ],
)
def test_what_is_wrong_is_one_line(ran, words, kept, said, faulty, monkeypatch):
    monkeypatch.chdir(faulty.parent)
    with pytest.raises((SFTCoreError, SystemExit)) as error:
        ran(*words, **kept)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_command_says_it_as_one_line_too():
    done = commands.sftcore("sft", "--model_name_or_path", "m", "--dataset_name", "d", "--max_steps", "many")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "invalid int value: 'many'" in line
    assert "Traceback" not in done.stderr


NAMED = ["--model_name_or_path", "m", "--dataset_name", "d", "--use_cpu"]
MISTAKES: list[tuple[list[str], str]] = [
    (["--max_steps", "many"], "invalid int value: 'many'"),
    (["--model", "m"], 'there is no option --model. Did you mean "--model_name_or_path"?'),
    (["--data=m"], 'there is no option --data. Did you mean "--dataset_name"?'),
    (["--bf16", "maybe"], "(case insensitive). All options: sftcore sft --help"),
    (["--logging_steps"], "expected one argument"),
    (["--optim", "adamx"], 'optim "adamx" is not known. Did you mean "adamw_torch"?'),
    (["--seed=-1"], "seed is -1. It must be at least 0"),
    (["--dtype", "bf16"], 'dtype "bf16" is not known. Did you mean "bfloat16"?'),
    (["--dispatch_batches", "true"], "dispatch_batches is not a field of SFTConfig"),
    (["--fp16_opt_level", "O1"], "fp16_opt_level is not a field of SFTConfig"),
    (["--max_stps", "3"], 'there is no option --max_stps. Did you mean "max_steps"?'),
    (["--lora_layers", "3", "4"], "there is no option --lora_layers."),
    (["--accelerate_config", "zero4"], 'Did you mean "zero3"?'),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[words[0] for words, _ in MISTAKES])
def test_a_mistake_in_the_options_is_one_line(words, said):
    with pytest.raises(SFTCoreError) as error:
        parse([*NAMED, *words])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_all_mistakes_in_the_options_are_told_at_once():
    words = [word for given, _ in MISTAKES for word in given]
    with pytest.raises(SettingsError) as error:
        parse([*words, *NAMED])
    head, *lines = str(error.value).splitlines()
    assert head.startswith(f"{len(MISTAKES)} problems")
    assert len(lines) == len(MISTAKES)
    for _, said in MISTAKES:
        assert sum(said in line for line in lines) == 1
    with pytest.raises(SettingsError) as error:
        parse(["--max_steps", "many"])
    assert [part in str(error.value) for part in ("3 problems", "--model_name_or_path MODEL", "--dataset_name")] == [
        True
    ] * 3


def test_another_run_in_the_folder_is_not_replaced_by_accident(tmp_path, model_folder, folder):
    words = ["--model_name_or_path", str(model_folder), "--dataset_name", str(folder), "--max_steps", "1", "--use_cpu"]
    words += ["--output_dir", str(tmp_path / "out")]
    done = commands.sftcore("sft", *words, "--logging_steps", "1", COLUMNS="40")
    assert done.returncode == 0, done.stderr
    assert [line[:10] for line in done.stdout.splitlines()] == ["step 1/1  ", "saved in /"]
    assert "holds another run" in commands.sftcore("sft", *words).stderr
    assert commands.sftcore("sft", *words, "--overwrite_output_dir").returncode == 0


# --- Several processes ----------------------------------------------------------------------------------------------
BASE = ["--model_name_or_path", "m", "--dataset_name", "d", "--use_cpu"]


@pytest.mark.parametrize(
    ("words", "launched"),
    [
        ([], ()),
        (["--num_processes", "2", "--main_process_port=0"], ("--num_processes", "2", "--main_process_port=0")),
        (["--accelerate_config", "single_gpu"], ("--num_processes", "1")),
        (["--multi_gpu", "--max_steps", "3", "--machine_rank", "1"], ("--multi_gpu", "--machine_rank", "1")),
    ],
)
def test_options_of_the_launcher_are_told_apart(words, launched):
    assert parse([*BASE, *words]).launch == launched


def test_a_file_may_hold_them_too(write):
    base = "model_name_or_path: m\ndataset_name: d\n"
    file = write("c.yaml", f"{base}num_processes: 2\nmulti_gpu: true\nuse_fsdp: false\n")
    assert parse(["--config", str(file), "--use_cpu"]).launch == ("--num_processes", "2", "--multi_gpu")
    wrong = write("w.yaml", f"{base}num_proceses: 2\n")
    with pytest.raises(SFTCoreError, match="there is no option --num_proceses"):
        parse(["--config", str(wrong), "--use_cpu"])


def test_a_file_of_accelerate_is_handed_on(write):
    file = write("a.yaml", "num_processes: 2\n")
    options = parse([*BASE, "--accelerate_config", str(file)]).launch
    assert options == ("--config_file", str(file))
    assert launcher_options(options) == list(options)


@pytest.mark.parametrize("name", ACCELERATE_CONFIGS)
def test_the_launcher_knows_what_a_named_way_asks_for(name):
    options = launcher_options([*ACCELERATE_CONFIGS[name], "--num_processes", "4"])
    given, rest = launch_command_parser().parse_known_args([*options, "script.py"])
    assert (given.num_processes, given.training_script, rest) == (4, "script.py", [])
    assert given.use_fsdp == name.startswith("fsdp")
    assert given.use_deepspeed == name.startswith("zero")
    if given.use_fsdp:
        assert given.fsdp_version == name[-1]
    if given.use_deepspeed:
        assert given.zero_stage == int(name[-1])


def test_a_token_is_not_printed_with_the_launch():
    shown = without_secrets_in(["sft", "--hub_token", "abc", "--max_steps", "3", "--hub_token=abc"])
    assert "abc" not in " ".join(shown)
    assert shown[3:5] == ["--max_steps", "3"]


@pytest.mark.slow
def test_two_processes_train_together(tmp_path, model_folder, folder):
    words = ["--model_name_or_path", str(model_folder), "--dataset_name", str(folder), "--max_steps", "1", "--use_cpu"]
    out = tmp_path / "out"
    done = commands.sftcore("sft", *words, "--output_dir", str(out), "--num_processes", "2", "--main_process_port", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of 16 rows (8 x 2 processes)" in done.stderr
    assert json.loads((out / "manifest.json").read_text())["environment"]["processes"] == 2
    assert done.stdout.count("saved in") == 1
