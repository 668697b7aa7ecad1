"""Where each value of a run comes from, and in which two runs differ."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sftcore import SFTCoreError
from sftcore.cli import cli
from sftcore.config.described.fields import described_fields
from sftcore.config.described.origins import differences, origins, values_by_path, values_of
from sftcore.config.fields import config_fields
from sftcore.config.recipe import load_recipe
from sftcore.config.setup import set_up_recipe

TEXT = """
model: {name: m, dtype: bfloat16}
data: {train: [{path: a.jsonl, rows: 3}, b.jsonl], eval_fraction: 0.1}
adapter: {lora: {r: 8}}
learning_rate: 1e-4
hub_token: hf_secret
max_length: 512
"""


@pytest.fixture
def recipe_file(write):
    return write("r.yaml", TEXT)


def by_path(file, *overrides):
    recipe = load_recipe(file, overrides)
    keys = [one.partition("=")[0] for one in overrides]
    return {one.path: one for one in origins(recipe, set_up_recipe(recipe), keys)}


def test_each_value_says_where_it_comes_from(recipe_file):
    found = by_path(recipe_file, "max_length=256", "adapter.lora.lora_alpha=4")
    place = str(recipe_file)
    said = {path: (one.value, one.whose) for path, one in found.items()}
    assert said["model.dtype"] == ("bfloat16", place)
    assert said["model.revision"] == (None, "default of sftcore")
    assert said["data.train[0].rows"] == (3, place)
    assert said["data.train[0].split"] == ("train", "default of sftcore")
    assert said["data.eval_fraction"] == (0.1, place)
    assert said["data.streaming"] == (False, "default of sftcore")
    assert said["adapter"] == ("lora@sftcore", place)
    assert said["adapter.lora.r"] == (8, place)
    assert said["adapter.lora.lora_alpha"] == (4, "command line")
    assert said["adapter.lora.use_dora"] == (False, "default of the plugin lora@sftcore")
    assert said["loss"] == ("nll@sftcore", "default of sftcore")
    assert said["learning_rate"] == (1e-4, place)
    assert said["max_length"] == (256, "command line")
    assert said["eval_strategy"] == ("epoch", "follows from other settings")
    assert said["packing"] == (False, "default of TRL")
    assert said["seed"] == (42, "default of transformers")
    assert said["optim"] == (
        "<adamw_torch or adamw_torch_fused>",
        "default of transformers",
    )
    assert said["on_nonfinite"] == ("stop", "default of sftcore")
    assert said["output_dir"] == ("m-SFT", "default of sftcore")
    assert said["attention"][1].startswith("auto: the fastest of")


def test_no_field_is_missing_and_no_secret_is_shown(recipe_file):
    found = by_path(recipe_file)
    assert set(config_fields()) - set(found) == {"plugins", "block", "model_init_kwargs"}
    assert found["hub_token"].value == "<not written>"
    assert "hf_secret" not in json.dumps([one.value for one in found.values()])


def test_computed_defaults_are_few():
    open_ones = {name for name, one in described_fields().items() if str(one.default).startswith("<")}
    assert open_ones <= {"optim"}


def test_two_recipes_differ_in_what_they_say(recipe_file, write):
    other = write("o.yaml", TEXT.replace("1e-4", "2e-4").replace("{lora: {r: 8}}", "{qlora: {r: 4}}"))
    recipe = load_recipe(recipe_file)
    found = list(differences(values_by_path(recipe, set_up_recipe(recipe)), values_of(str(other))))
    assert found == [
        ("adapter", "lora@sftcore", "qlora@sftcore"),
        ("adapter.lora.r", 8, "—"),
        ("adapter.qlora.r", "—", 4),
        ("learning_rate", 1e-4, 2e-4),
    ]


def test_a_spelled_default_is_no_difference(recipe_file, write):
    other = write("o.yaml", TEXT + "seed: 42\npacking: false\n")
    recipe = load_recipe(recipe_file)
    assert list(differences(values_by_path(recipe, set_up_recipe(recipe)), values_of(str(other)))) == []


def test_a_recipe_and_a_run_are_compared_by_its_manifest(recipe_file, tmp_path):
    raw = {"model": "m", "data": "a.jsonl", "learning_rate": 3e-4, "hub_token": "<not written>"}
    (tmp_path / "manifest.json").write_text(json.dumps({"recipe": raw, "settings": {}}), encoding="utf-8")
    assert values_of(str(tmp_path))["learning_rate"].value == 3e-4
    assert values_of(str(tmp_path / "manifest.json"))["hub_token"].value is None


def test_a_run_from_python_is_compared_by_its_settings(tmp_path):
    manifest = {
        "model": {"name": "m", "dtype": "float32"}, "settings": {"learning_rate": 1, "plugins": None},
        "plugins": [{"kind": "adapter", "name": "lora", "distribution": "sftcore", "options": {"r": 8}}],
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    found = {path: one.value for path, one in values_of(str(tmp_path)).items()}
    assert found == {
        "learning_rate": 1, "model.name": "m", "model.dtype": "float32", "adapter": "lora@sftcore", "adapter.lora.r": 8,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["[]", "{", '{"settings": 3}', "[" * 100_000])
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(SFTCoreError, match="manifest"):
        values_of(str(tmp_path))


def test_the_verb_shows_values_and_differences(recipe_file, write):
    for name in ("a.jsonl", "b.jsonl"):
        write(name, '{"text": "hello"}\n')
    folder = recipe_file.parent
    write("s.yaml", TEXT.replace("a.jsonl", str(folder / "a.jsonl")).replace("b.jsonl", str(folder / "b.jsonl")))
    shown = CliRunner().invoke(cli, ["explain", str(folder / "s.yaml"), "max_length=256"]).output
    assert "Values, and where each comes from:" in shown
    assert " ".join(shown.split()).count("max_length 256 (command line)") == 1
    assert "hf_secret" not in shown
    shown = CliRunner().invoke(cli, ["explain", str(recipe_file), "seed=1", "--diff", str(recipe_file)]).output
    assert "1 value differs" in shown
    assert "1  |  42" in shown
    assert (
        "No value differs" in CliRunner().invoke(cli, ["explain", str(recipe_file), "--diff", str(recipe_file)]).output
    )
