"""Every line of a configuration is used, says what holds anyway, or is named; the recipe reads back as it was meant."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sftcore.config import yaml12
from tests.importers.world import CONFIGS, FILES, brought, make_world

# What is not a setting: comments, blank lines, lists and mappings that only open, code that sets nothing up.
_SCRIPT_LINES = {
    "swift-lora.sh": {1, 2, 3, 6},
    "swift-full.sh": {1, 2, 3, 5, 12, 14},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def inside(world, monkeypatch):
    monkeypatch.chdir(world)


def _lines_with_settings(name: str) -> set[int]:
    """The lines of a YAML file that hold a value, found without the importer's own reader."""
    found, in_list = set(), False
    for number, line in enumerate((CONFIGS / name).read_text().splitlines(), 1):
        text = line.split(" #")[0].strip()
        if in_list:
            in_list = not text.endswith("]")
            continue
        if not text or text.startswith("#") or ":" not in text:
            continue
        key, _, value = text.removeprefix("- ").partition(":")
        following = (CONFIGS / name).read_text().splitlines()[number : number + 1]
        opens = (
            not value.strip()
            and following
            and (
                following[0].startswith(
                    (" " * (len(line) - len(line.lstrip()) + 2), line[: len(line) - len(line.lstrip())] + "-")
                )
            )
        )
        if key and not opens:
            found.add(number)
        in_list = value.strip().startswith("[") and not text.endswith("]")
    return found


@pytest.mark.parametrize("name", [one for one in FILES if one.endswith((".yml", ".yaml"))])
def test_every_line_with_a_value_is_accounted_for(name):
    lines = {one.place.line for one in brought(name).account if not one.place.file}
    assert _lines_with_settings(name) - lines == set()


@pytest.mark.parametrize("name", ["swift-lora.sh", "swift-full.sh", "trl-accelerate.sh", "torchtune-run.sh"])
def test_every_option_of_a_script_is_accounted_for(name):
    shown = " ".join(one.shown for one in brought(name).account)
    text = (CONFIGS / name).read_text()
    options = [
        word.lstrip("-").partition("=")[0] for word in text.split() if word.startswith("--") and word[2:3].isalpha()
    ]
    missing = [one for one in options if one.removeprefix("no_") not in shown and one not in ("config", "gres")]
    assert missing == []


@pytest.mark.parametrize("name", [one for one in FILES if one.endswith(".py")])
def test_every_argument_of_a_call_is_accounted_for(name):
    import ast

    calls = {
        "SFTConfig",
        "TrainingArguments",
        "from_pretrained",
        "get_peft_model",
        "load_dataset",
        "train_on_responses_only",
        "get_chat_template",
    }
    shown = [one.shown for one in brought(name).account]
    for node in ast.walk(ast.parse((CONFIGS / name).read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in calls:
            for keyword in node.keywords:
                if keyword.arg:
                    assert any(keyword.arg in text for text in shown), keyword.arg


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("without_gpu", [False, True])
def test_the_text_reads_back_as_the_values_that_were_meant(name, without_gpu):
    made = brought(name, without_gpu=without_gpu)
    assert yaml12.load(made.text, where=name) == made.values


def test_an_account_names_what_is_used_equivalent_and_not_carried_over():
    lines = {one.shown.partition(":")[0]: one for one in brought("axolotl-alpaca.yml").account}
    assert lines["lora_r"].outcome == "used"
    assert lines["lora_r"].words == "adapter.qlora.r"
    assert lines["plugins"].outcome == "equivalent"
    assert lines["my_own_key"].outcome == "named"


def test_a_secret_is_named_and_its_value_is_nowhere():
    for name, secret in (
        ("axolotl-alpaca.yml", "hf_notareal"),
        ("llamafactory-full.yaml", "not-a-real-key"),
        ("swift-lora.sh", "not-a-real-key"),
        ("trl-full.py", "hf_abcdef"),
        ("trl-lora.yaml", "hf_secret"),
    ):
        made = brought(name)
        whole = made.text + repr(made.values) + repr(made.account)
        assert secret not in whole
        assert "a secret" in made.text


def test_what_needs_a_gpu_is_left_out_by_a_switch_and_named():
    made = brought("axolotl-alpaca.yml", without_gpu=True)
    assert {"attention", "kernel", "loss", "tf32", "deepspeed"} & set(made.values) == set()
    assert [one.partition(" (")[0] for one in made.left_of_gpu] == [
        "tf32", "flash attention", "Liger's kernels", "Liger's loss", "offloading of activations",
        "the optimizer paged_adamw_8bit", "DeepSpeed",
    ]  # fmt: skip
    assert "flash attention" in made.text
    with_gpu = brought("axolotl-alpaca.yml").values
    assert with_gpu["attention"] == "flash-2"
    assert with_gpu["kernel"] == {"liger": {"rope": True, "rms_norm": True, "mlp": True}}


def test_an_import_brings_no_torch_and_runs_nothing(world):
    code = (
        "import sys, time; from pathlib import Path; from sftcore.importers.bring import bring\n"
        f"for name in {FILES!r}: bring(name.partition('-')[0], Path(name))\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'accelerate'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=world, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
    assert not (world / "written-by-the-script").exists()
