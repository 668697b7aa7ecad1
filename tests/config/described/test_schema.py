"""The JSON schema of recipes: it takes what a recipe may say, refuses what a run would refuse, and imports no torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import MISSING
from pathlib import Path

import jsonschema
import pytest

from sftcore.config import yaml12
from sftcore.config.described.fields import OF_TRL, TRANSFORMERS, TRL, described_fields
from sftcore.config.described.schema import DRAFT, recipe_schema, schema_of
from sftcore.config.fields import config_fields
from sftcore.config.recipe import parse_recipe
from sftcore.config.setup import set_up_recipe
from sftcore.config.sft_config import SFTConfig
from sftcore.core.discovery import discover
from sftcore.core.errors import SFTCoreError

ROOT = Path(__file__).parents[3]
SMALL = {"model": "m", "data": "d.jsonl"}


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(json.dumps(recipe_schema(discover())))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def documented():
    """Every recipe in the docs, the README and the examples."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for i, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)):
            if re.search(r"^model:", text, re.M) and re.search(r"^data:", text, re.M):
                yield pytest.param(text, id=f"{path.stem}-{i}")
    for path in sorted((ROOT / "examples").rglob("*.y*ml")):
        if re.search(r"^model:", text := path.read_text(encoding="utf-8"), re.M):
            yield pytest.param(text, id=path.stem)


@pytest.mark.parametrize("text", documented())
def test_recipes_of_the_docs_and_examples_are_valid(validator, text):
    raw = yaml12.load(text, where="r.yaml")
    assert [error.message for error in validator.iter_errors(raw)] == []


RIGHT = [
    {"model": {"name": "m", "dtype": "bfloat16", "init_kwargs": {"device_map": "auto"}}},
    {"data": ["a.jsonl", {"path": ["b.jsonl", "c.jsonl"], "weight": 2, "format": {"alpaca": {"style": "alpaca"}}}]},
    {"data": {"train": "a.jsonl", "eval": {"dev": "dev.jsonl", "hard": {"path": "h.jsonl"}}}},
    {"data": {"path": "a.jsonl", "rows": 10, "format": "text", "eval_fraction": 0.1}},
    {"adapter": "lora"}, {"adapter": {"lora": None}}, {"adapter": {"lora": {"r": 8, "arguments": {"bias": "none"}}}},
    {"adapter": None}, {"format": "chat@acme"}, {"kernel": ["liger", {"compile": {}}]}, {"kernel": {"liger": {}}},
    {"attention": "auto"}, {"noise": []}, {"block": "kernel:liger"}, {"block": ["kernel:liger"]},
    {"bf16": "auto"}, {"bf16": True}, {"fsdp": ["full_shard", "auto_wrap"]}, {"fsdp": "full_shard auto_wrap"},
    {"learning_rate": 1}, {"max_steps": -1}, {"warmup_ratio": 0.1}, {"max_seq_length": 512},
    {"resume_from_checkpoint": True}, {"resume_from_checkpoint": "auto"}, {"report_to": ["wandb"]},
    {"pad_to_multiple_of": "64"}, {"pad_to_multiple_of": 64}, {"max_length": None}, {"optim": "adamw_8bit"},
    {"lr_scheduler_kwargs": {"num_cycles": 2}}, {"rows": {"where": {"a": 1}}}, {"eval_strategy": "no"},
]  # fmt: skip
WRONG = [
    {"model": ""}, {"model": 3}, {"model": {"dtype": "float32"}}, {"model": {"name": "m", "dtype": "bf16"}},
    {"model": {"name": "m", "load_in_4bit": True}}, {"data": {"train": "a", "eval_fraction": 1.5}}, {"data": []},
    {"data": {"eval": "dev.jsonl"}}, {"data": {"train": "a", "weight": 1}}, {"data": [{"path": "a", "weight": 0}]},
    {"data": [{"weight": 1}]}, {"data": 3}, {"data": {"train": "a", "streaming": "yes"}},
    {"lora_r": 8}, {"learnin_rate": 1}, {"learning_rate": "2e-4"}, {"learning_rate": -1}, {"packing": "true"},
    {"adapter": "lroa"}, {"adapter": {"lora": {"rank": 8}}}, {"adapter": {"lora": {"r": "8"}}},
    {"adapter": {"lora": 3}},
    {"adapter": {"lora": {}, "qlora": {}}}, {"adapter": {"qlora": {"bits": 3}}}, {"format": ["chat", "text"]},
    {"kernel": ["liger", "nothing"]}, {"optim": "adamx"}, {"lr_scheduler_type": "cosin"}, {"max_steps": 0},
    {"max_steps": 1.5}, {"seed": -1}, {"label_smoothing_factor": 1}, {"max_length": 1}, {"bf16": "automatic"},
    {"pad_to_multiple_of": "some"}, {"report_to": ["nonsense"]}, {"plugins": {}}, {"model_init_kwargs": {}},
    {"gradient_checkpointing": "unsloth"}, {"fsdp": ["full_shrad"]}, {"block": [3]}, {"on_nonfinite": "ignore"},
]  # fmt: skip


@pytest.mark.parametrize("change", RIGHT, ids=str)
def test_what_a_recipe_may_say_is_valid(validator, change):
    raw = {**SMALL, **change}
    parse_recipe(raw)
    assert [error.message for error in validator.iter_errors(raw)] == []


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_what_a_run_refuses_is_not_valid(validator, change):
    raw = {**SMALL, **change}
    with pytest.raises(SFTCoreError):
        set_up_recipe(parse_recipe(raw))
    assert not validator.is_valid(raw)


@pytest.mark.parametrize("missing", ["model", "data"])
def test_both_required_keys_are(validator, missing):
    assert not validator.is_valid({key: value for key, value in SMALL.items() if key != missing})


def test_each_field_is_described_with_its_default(tmp_path):
    """What is read from source is what the class has."""
    made = {one.name: one for one in SFTConfig.__dataclass_fields__.values()}
    for name, found in described_fields().items():
        assert found.text, name
        default = made[name].default
        if default is not MISSING and not str(found.default).startswith("<"):
            assert getattr(default, "value", default) == found.default, name
    assert described_fields()["max_length"].default == 1024
    assert described_fields()["seed"].whose == TRANSFORMERS


def test_fields_and_defaults_of_trl_are_said_to_be_its_own():
    import trl

    own = set(trl.SFTConfig.__dataclass_fields__) - set(trl.SFTConfig.__mro__[2].__dataclass_fields__)
    for name in OF_TRL:
        assert described_fields()[name].whose == TRL
        assert name in trl.SFTConfig.__dataclass_fields__, name
    assert own & set(config_fields()) - OF_TRL <= {"mask_style", "padding_free", "bf16", "logging_nan_inf_filter"}


def test_types_become_schemas():
    assert schema_of(dict[str, int]) == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert schema_of(object) == {}


def test_the_verb_prints_the_schema_and_imports_no_torch():
    code = (
        "import sys\nfrom sftcore.cli import cli\ncli(['schema'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    printed = json.loads(done.stdout)
    assert printed["$schema"] == DRAFT
    assert printed["properties"]["adapter"]["anyOf"][1]["enum"]
