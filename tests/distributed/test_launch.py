"""`sftcore train --nproc`, and what is refused before several processes are started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoModelForCausalLM, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from sftcore import SFTConfig
from sftcore.config.processes import process_problems
from sftcore.config.recipe import load_recipe
from sftcore.core.errors import CheckError, ConflictError, RecipeError
from sftcore.model.precision import wants_master_weights
from sftcore.train.processes.launch import launch
from sftcore.train.run import check_recipe, config_of

EXAMPLES = Path(__file__).parents[2] / "examples" / "distributed"


@pytest.fixture
def recipe(tmp_path, model_folder, write):
    rows = write("rows.jsonl", "".join(json.dumps({"text": f"hello {number} ."}) + "\n" for number in range(7)))
    return write(
        "run.yaml",
        f"model: {model_folder}\ndata: {rows}\noutput_dir: {tmp_path / 'out'}\nuse_cpu: true\nlogging_steps: 1\n"
        "per_device_train_batch_size: 2\nnum_train_epochs: 1\nsave_strategy: 'no'\n",
    )


def sftcore(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "sftcore", *map(str, words)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.slow
def test_nproc_starts_that_many_processes_and_says_how(recipe, tmp_path):
    shown = sftcore("train", recipe, "learning_rate=1e-3", "--nproc", 2)
    assert shown.returncode == 0, shown.stderr[-3000:]
    said = [line for line in shown.stderr.splitlines() if line.startswith("launch ")]
    assert len(said) == 1
    assert f"-m sftcore train {recipe} learning_rate=1e-3" in said[0]
    assert "2, each of 4 rows (2 x 2 processes)" in shown.stderr
    assert shown.stdout.count("saved in") == 1  # the first process speaks for both
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["steps"] == 2
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_wrong_recipe_is_told_once_before_anything_is_started(recipe):
    shown = sftcore("train", recipe, "lerning_rate=1e-3", "--nproc", 2)
    assert shown.returncode == 1
    assert "launch" not in shown.stderr
    assert shown.stderr.count('unknown key "lerning_rate"') == 1


def test_nproc_of_none_is_a_wrong_command(recipe):
    assert sftcore("train", recipe, "--nproc", 0).returncode == 2


def test_a_process_that_was_launched_starts_no_others(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConflictError, match="one of 4 processes"):
        launch(2, ["run.yaml"], {})


def test_deepspeed_that_is_missing_is_said_by_check_and_in_python(recipe):
    config = {"zero_optimization": {"stage": 2}}
    with pytest.raises(CheckError, match="deepspeed is not installed"):
        check_recipe(load_recipe(str(recipe), [f"deepspeed={json.dumps(config)}"]))
    with pytest.raises(ConflictError, match=r"deepspeed is not installed. Install it \(pip install deepspeed\)"):
        SFTConfig("out", use_cpu=True, deepspeed=config)


def test_deepspeed_asked_for_by_the_launcher_is_missing_too(recipe, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(CheckError, match="deepspeed is not installed"):
        check_recipe(load_recipe(str(recipe), []))


@pytest.fixture
def zero3(tmp_path, monkeypatch):
    """A file of DeepSpeed's in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero3.json").write_text('{"zero_optimization": {"stage": 3}}')


def test_deepspeed_does_not_train_on_what_is_not_finite(recipe, zero3):
    with pytest.raises(CheckError, match="DeepSpeed itself skips a step whose gradients are NaN or Inf"):
        check_recipe(load_recipe(str(recipe), ["deepspeed=zero3.json", "on_nonfinite=continue"]))


@pytest.mark.parametrize("given", [{"zero_optimization": {"stage": 3}, "bf16": {"enabled": "auto"}}, "zero3.json"])
def test_a_deepspeed_configuration_is_handed_on_as_it_is(recipe, zero3, given):
    spelled = given if isinstance(given, str) else json.dumps(given)
    assert config_of(load_recipe(str(recipe), [f"deepspeed={spelled}"]))["deepspeed"] == given


@pytest.mark.parametrize("given", ["true", "full_shard"])
def test_a_recipe_takes_fsdp_as_true_and_as_the_older_text(recipe, given):
    told = config_of(load_recipe(str(recipe), [f"fsdp={given}", "fsdp_config={state_dict_type: SHARDED_STATE_DICT}"]))
    assert told["fsdp"] == (given == "true" or given)
    assert told["fsdp_config"] == {"state_dict_type": "SHARDED_STATE_DICT"}


@pytest.mark.parametrize("kind", [dict, AcceleratorConfig])
def test_an_order_of_rows_that_no_checkpoint_keeps_is_refused_for_several_processes(recipe, monkeypatch, kind):
    plan = check_recipe(load_recipe(str(recipe), [])).setup.plan
    plan = attrs.evolve(plan, settings={**plan.settings, "accelerator_config": kind(use_seedable_sampler=False)})
    assert not list(process_problems(plan))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [problem.where for problem in process_problems(plan)] == ["accelerator_config"]


def test_a_recipe_cannot_hold_the_parallelism_of_accelerate(recipe):
    with pytest.raises(RecipeError, match="takes accelerate's ParallelismConfig, got dict"):
        check_recipe(load_recipe(str(recipe), ["parallelism_config={tp_size: 2}"]))


@pytest.mark.parametrize("name", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_what_a_launcher_shards_gets_no_master_copies_of_ours(recipe, llama, monkeypatch, name):
    assert wants_master_weights(llama.bfloat16(), {"master_weights": True})
    monkeypatch.setenv(name, "true")
    assert not wants_master_weights(llama, {"master_weights": True})
    with pytest.raises(CheckError, match="shards the weights and keeps its own master copies"):
        check_recipe(load_recipe(str(recipe), ["master_weights=true"]))


@pytest.mark.parametrize(("size", "name"), [("CP", "context"), ("SP", "sequence")])
def test_parallelism_that_splits_rows_is_refused(recipe, monkeypatch, size, name):
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{size}_SIZE", "2")
    with pytest.raises(CheckError, match=f"{name} parallelism splits rows"):
        check_recipe(load_recipe(str(recipe), []))


def test_an_adapter_with_tensor_parallelism_is_refused(recipe):
    with pytest.raises(CheckError, match="tensor parallelism splits the weights that the adapter wraps"):
        check_recipe(load_recipe(str(recipe), ["model.init_kwargs.tp_plan=auto", "adapter=lora"]))


def test_a_plain_script_with_several_gpus_takes_one_and_says_how_to_use_all(monkeypatch, tmp_path):
    def two_visible(args):
        args._n_gpu = 2
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments._setup_devices, "func", two_visible)
    with pytest.warns(
        UserWarning, match=r"2 GPUs are visible and one is used. To use all: sftcore train --nproc 2, or "
    ):
        args = SFTConfig(str(tmp_path), use_cpu=True)
    assert args.n_gpu == 1


def test_the_slurm_script_starts_one_launcher_on_each_node(tmp_path):
    commands = {
        "scontrol": "echo node1; echo node2",
        "srun": 'shift; for n in 0 1; do SLURM_NODEID=$n "$@"; done',
        "accelerate": 'printf "%s\\n" "$*"',
    }
    for name, does in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_NODELIST": "node[1-2]", "NNODES": "2", "GPUS_PER_NODE": "a100:4", "CPUS_PER_TASK": "16"}
    environment = {f"SLURM_{name}": value for name, value in slurm.items()}
    shown = subprocess.run(
        ["bash", str(EXAMPLES / "slurm.sh"), "run.yaml", "output_dir=two words"],
        capture_output=True, text=True, env={**os.environ, **environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        "launch --config_file examples/distributed/two_nodes.yaml --num_machines 2 --num_processes 8 "
        f"--machine_rank {rank} --main_process_ip node1 --main_process_port 29500 "
        "-m sftcore train run.yaml output_dir=two words resume_from_checkpoint=auto"
        for rank in (0, 1)
    ]


def test_the_example_of_two_nodes_is_a_configuration_of_accelerate():
    config = load_config_from_file(str(EXAMPLES / "two_nodes.yaml"))
    assert (config.num_machines, config.num_processes, str(config.distributed_type)) == (
        2, 16, "DistributedType.MULTI_GPU",
    )  # fmt: skip
