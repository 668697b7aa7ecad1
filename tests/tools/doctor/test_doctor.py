"""`sftcore doctor` finds each fault that is seeded here, says how to mend it, and finds nothing where nothing is."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import shutil
import sys

import pytest
from click.testing import CliRunner

from sftcore.cli import cli
from sftcore.testing.isolated import isolated

LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(scope="module")
def recipe(model_folder, tmp_path_factory):
    """The words of a recipe that runs."""
    folder = tmp_path_factory.mktemp("doctor")
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"hello world {number}"}) for number in range(8)))
    return f"model={model_folder}", f"data={rows}", f"output_dir={folder / 'out'}", "max_length=32"


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    """No launcher, no GPU, no other plugins, and a cache that can be written to."""
    for name in (*LAUNCH, "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with isolated():
        yield


def examined(*words):
    """The lines of the doctor by area, and its exit code."""
    result = CliRunner().invoke(cli, ["doctor", "--json", *words], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert found["schema"] == 1
    assert found["ok"] == (result.exit_code == 0) == all(one["status"] != "error" for one in found["lines"])
    return found["lines"], result.exit_code


def fault(area, *words):
    """The errors in one area, each of which says how to mend it; there is none in any other."""
    lines, code = examined(*words)
    wrong = [one for one in lines if one["status"] == "error"]
    assert code == 1
    assert {one["area"] for one in wrong} == {area}, wrong
    assert all(one["fix"] for one in wrong)
    return " | ".join(f"{one['what']} {one['fix']}" for one in wrong)


def installed(folder, monkeypatch, name, version, *requires):
    """A distribution whose metadata come before those of the real one."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [f"Requires-Dist: {one}" for one in requires]
    info.joinpath("METADATA").write_text(
        "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines])
    )
    if str(folder) not in sys.path:
        monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()


def a_gpu(folder, monkeypatch, *, name="NVIDIA V100", capability="7.0", total=32768, free=32000):
    """A driver with one GPU and a torch that was built for it, as far as metadata and nvidia-smi tell."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{name}, {capability}, {total}, {free}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    installed(folder / "site", monkeypatch, "torch", f"{importlib.metadata.version('torch').partition('+')[0]}+cu128")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_nothing_is_wrong_where_nothing_is(recipe):
    lines, code = examined(*recipe)
    assert code == 0, [one for one in lines if one["status"] == "error"]
    areas = {one["area"] for one in lines}
    assert areas >= {
        "versions",
        "devices",
        "launcher",
        "environment",
        "plugins",
        "disk",
        "recipe",
        "precision",
        "memory",
    }


def test_a_machine_alone_is_examined_without_a_recipe():
    lines, code = examined()
    assert code == 0, [one for one in lines if one["status"] == "error"]
    assert any(one["area"] == "versions" and "transformers" in one["what"] for one in lines)


# --- Versions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", ["4.57.1", "6.0.0", "5.16.9"])
def test_transformers_outside_the_bounds(tmp_path, monkeypatch, version):
    installed(tmp_path, monkeypatch, "transformers", version)
    found = fault("versions")
    assert f"{version} is installed" in found
    assert 'pip install "transformers' in found


def test_a_pair_that_does_not_go_together_names_the_one_package_to_change(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "torchvision", "0.20.0", "torch==2.5.0")
    found = fault("versions")
    assert "torchvision 0.20.0 needs torch==2.5.0" in found
    assert "--upgrade torchvision" in found
    assert "install --upgrade torch " not in found


def test_a_pair_within_our_bounds_names_the_version_that_both_take(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "peft", "0.18.0", "accelerate>=99")
    found = fault("versions")
    assert "peft 0.18.0 needs accelerate>=99" in found
    assert 'pip install "accelerate' in found
    assert ">=99" in found


def test_builds_for_other_devices(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "torch", "2.13.0+cu128")
    installed(tmp_path, monkeypatch, "torchvision", "0.28.0+cpu")
    assert "torchvision 0.28.0+cpu" in fault("versions")


def test_what_others_need_of_each_other_is_a_warning(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "vllm", "1.0", "trl>=99")
    installed(tmp_path, monkeypatch, "trl", "1.0")
    lines, code = examined()
    assert code == 0
    assert any(one["status"] == "warning" and "vllm 1.0 needs trl>=99" in one["what"] for one in lines)


# --- Plugins --------------------------------------------------------------------------------------------------------
def test_an_extra_that_the_recipe_needs_and_that_is_missing(recipe):
    with isolated() as plugins:
        extra = "Provides-Extra: faint\nRequires-Dist: no-such-distribution>=2; extra == 'faint'\n"
        plugins(noise={"faint": "json:JSONDecoder"}, metadata=extra)
        found = fault("recipe", *recipe, "noise=faint")
    assert "no-such-distribution>=2" in found
    assert 'pip install "under-test[faint]"' in found


@pytest.mark.parametrize("entry", ["no_such_module_at_all:Class", "json:JSONDecoder", "json:nothing"])
def test_a_broken_plugin(entry):
    with isolated() as plugins:
        plugins(noise={"broken": entry})
        found = fault("plugins")
    assert 'noise "broken@under-test"' in found
    assert "SFTCORE_BLOCK=noise:broken" in found


# --- Disk -----------------------------------------------------------------------------------------------------------
def test_a_disk_that_is_nearly_full(monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=200 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    found = fault("disk")
    assert "0.20 GiB are free" in found
    assert "SFTCORE_CACHE" in found


def test_a_cache_that_cannot_be_written_to(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path / "file" / "cache"))
    assert "the cache cannot be written" in fault("disk")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_of_somebody_else(monkeypatch, tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o500)
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path / "theirs" / "cache"))
    assert "the cache cannot be written" in fault("disk")


# --- The environment ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "of 4 processes"),
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "'two', which is not a number"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "1"}, "LOCAL_RANK is 1, more than RANK"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "the least is 1"),
        ({"ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_DEEPSPEED": "true"}, "FSDP and DeepSpeed"),
    ],
)
def test_a_launcher_that_contradicts_itself(monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert said in fault("launcher")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CUDA_VISIBLE_DEVICES", "0", "no NVIDIA GPU"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments=True", "torch refuses"),
        ("OMP_NUM_THREADS", "all", "not a number of threads"),
    ],
)
def test_variables_that_do_not_fit(monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    assert said in fault("environment")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("TRITON_INTERPRET", "1", "run in Python"), ("CUDA_VISIBLE_DEVICES", "0,3", "no GPU 3")],
)
def test_variables_that_do_not_fit_a_gpu(monkeypatch, tmp_path, name, value, said):
    a_gpu(tmp_path, monkeypatch)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setenv(name, value)
    assert said in fault("environment")


def test_a_torch_without_cuda_beside_a_gpu(monkeypatch, tmp_path):
    a_gpu(tmp_path, monkeypatch)
    shutil.rmtree(tmp_path / "site")
    installed(tmp_path / "other", monkeypatch, "torch", "2.13.0+cpu")
    assert "Change torch" in fault("devices")


# --- What a recipe needs --------------------------------------------------------------------------------------------
def test_half_precision_that_a_cpu_lacks(recipe):
    assert "fp16: true needs a GPU" in fault("precision", *recipe, "fp16=true")


def test_half_precision_that_a_gpu_lacks(recipe, monkeypatch, tmp_path):
    a_gpu(tmp_path, monkeypatch)
    assert "NVIDIA V100 (compute capability 7.0) has less" in fault("precision", *recipe, "bf16=true")


def test_a_hub_that_cannot_be_reached(recipe, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    found = fault("hub", "model=somebody/a-model-2.5", *recipe[1:])
    assert "somebody/a-model-2.5 is not in the cache, and http://127.0.0.1:9 cannot be reached" in found


def test_a_hub_id_without_a_network(recipe, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in fault("hub", "model=somebody/a-model", *recipe[1:])


def test_too_little_memory_by_the_estimate(recipe, monkeypatch):
    monkeypatch.setattr("sftcore.tools.doctor.machine.host_memory", lambda: 2**19)
    assert "the run takes about" in fault("memory", *recipe)


def test_a_recipe_that_cannot_be_read_leaves_the_rest(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: [")
    assert "recipe.yaml" in fault("recipe", str(tmp_path / "recipe.yaml"))


def test_without_a_recipe_nothing_heavy_is_imported():
    import subprocess

    from tests.cli.test_list_plugins import MODULES

    done = subprocess.run([sys.executable, "-c", MODULES, "doctor"], capture_output=True, text=True)
    modules, _ = json.loads(done.stderr.splitlines()[-1])
    assert not {"torch", "transformers", "datasets", "peft", "accelerate"} & set(modules)
