"""Files that would do harm: read or refused, and nothing in them is run."""

from __future__ import annotations

import contextlib

import pytest

from sftcore.config import yaml12
from sftcore.core.errors import RecipeError
from sftcore.importers.bring import PEERS, bring

TOUCH = "touch written"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
KEYS = (
    *("base_model", "model", "datasets", "dataset", "sequence_len", "micro_batch_size", "batch_size", "lora_rank"),
    *("lora_r", "val_set_size", "val_size", "special_tokens", "tokens", "plugins", "optimizer", "lr_scheduler"),
    *("tokenizer", "checkpointer", "quantization_bit", "interleave_probs", "test_datasets", "eval_steps"),
)
REFUSED = {
    "deep.yml": ("a: " + "[" * 5000, "nested too deeply"),
    "bomb.yml": (BOMB, "aliases"),
    "itself.yml": ("base_model: x\ndatasets: &d [*d]\n", "aliases"),
    "null.yml": ("a: b\x00c\n", "#x0000"),
    "list.yml": ("- a\n", "a mapping of keys"),
    "empty.yml": ("", "a mapping of keys"),
    "large.yml": ("a: " + "x" * 5_000_000, "too large"),
    "keys.yml": ("? [a, b]\n: 1\n", "a key is a list"),
    "kinds.yml": ("base_model: x\nspecial_tokens: [a]\n", "special_tokens"),
    "echo.sh": ("echo hello\n", "no command"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(write, name):
    text, said = REFUSED[name]
    with pytest.raises(RecipeError, match=said) as error:
        bring("axolotl", write(name, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["x = " + "(" * 3000 + ")" * 3000, "SFTConfig(seed=" + "-" * 3000 + "1)", "def (:", "print(1)"]
)
def test_python_that_cannot_be_read_is_refused(write, text):
    with pytest.raises(RecipeError):
        bring("trl", write("train.py", text))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "x.yml"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(RecipeError, match="cannot be read"):
        bring("axolotl", path)


def test_tags_of_yaml_are_not_followed_and_named(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = bring(
        "axolotl", write("x.yml", f"base_model: !!python/object/apply:os.system ['{TOUCH}']\nlearning_rate: 1e-4\n")
    )
    assert made.values["learning_rate"] == 1e-4
    assert made.values["model"]["name"] == "FILL-IN"
    assert "a tag, which could run code" in made.text
    assert not (tmp_path / "written").exists()


def test_substitutions_of_a_shell_are_not_run_and_named(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = (
        f'swift sft --model "$({TOUCH}; echo x)" --dataset `{TOUCH}` --learning_rate $((1+1)) --lora_rank 8 '
        f"--output_dir ${{X:-$({TOUCH})}} <({TOUCH}) && {TOUCH}\n"
    )
    made = bring("swift", write("x.sh", script))
    assert (made.values["model"]["name"], made.values["learning_rate"]) == ("FILL-IN", "FILL-IN")
    assert made.values["adapter"]["lora"]["r"] == 8
    assert {f"model: $({TOUCH}; echo x)", f"dataset: `{TOUCH}`"} <= {one.shown for one in made.account}
    assert not (tmp_path / "written").exists()


def test_python_is_not_run(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = f'''
import os
os.system("{TOUCH}")
open("written", "w").write("x")
big = "a" * 10**9
huge = 9**9**9
again = again + again
args = SFTConfig(os.system("{TOUCH}") or "out", learning_rate=1e-4, run_name=big, num_train_epochs=huge, seed=again)
SFTTrainer(model="m", args=args)
'''
    made = bring("trl", write("x.py", script))
    assert made.values["learning_rate"] == 1e-4
    assert made.values["num_train_epochs"] == "FILL-IN"
    assert "run_name" not in made.values
    assert not (tmp_path / "written").exists()


def test_variables_that_grow_without_end_stop(write):
    script = (
        "V0=aaaaaaaaaa\n" + "".join(f"V{i}=$V{i - 1}$V{i - 1}\n" for i in range(1, 60)) + "swift sft --model $V59\n"
    )
    assert len(bring("swift", write("x.sh", script)).text) < 100_000


def test_no_text_of_a_file_becomes_a_line_of_the_recipe(write):
    evil = "x\\nmodel: evil\\u2028data: evil\\x85c\\rd\\x1b[31m\\u202e"
    file = write("x.yml", f'base_model: "{evil}"\nmy_key: "{evil}"\n"k\\nblock: 1": 2\noutput_dir: "a # b: c"\n')
    made = bring("axolotl", file)
    assert yaml12.load(made.text, where="x") == made.values
    assert set(made.values["model"]) == {"name", "dtype"}
    assert made.values["output_dir"] == "a # b: c"
    assert not [line for line in made.text.splitlines() if line.startswith(("block", "data: evil", "model: evil"))]
    assert "\x1b" not in made.text
    assert "\u202e" not in made.text


def test_a_value_that_only_a_run_would_tell_is_not_replaced_by_a_default(write):
    made = bring("swift", write("x.sh", "swift sft --model m --dataset d.jsonl --learning_rate $LR --lora_rank $2\n"))
    assert made.values["learning_rate"] == "FILL-IN"
    assert made.values["adapter"]["lora"]["r"] == "FILL-IN"


@pytest.mark.parametrize("peer", [one for one in PEERS if one != "unsloth"])
@pytest.mark.parametrize("value", ["x", "-1", "[a, b]", "{a: b}", "null", "true", "[{a: b}, 3, null]"])
def test_values_of_a_wrong_kind_are_named_or_refused_as_ours(write, peer, value):
    for key in KEYS:
        file = write("x.yml", f"{key}: {value}\nlearning_rate: 1e-4\n")
        with contextlib.suppress(RecipeError):
            made = bring(peer, file)
            assert yaml12.load(made.text, where="x") == made.values
