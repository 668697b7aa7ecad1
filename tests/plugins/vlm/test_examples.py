"""The example scripts run as they stand, and the one for images reads every option that it shows."""

import dataclasses
import json
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from sftcore import ModelConfig, SFTTrainer
from sftcore.testing.tiny_vlm import save

SCRIPTS = Path(__file__).parents[3] / "examples" / "scripts"
COMMON = ["--use_peft", "--max_steps", "1", "--use_cpu", "--report_to", "none"]


@pytest.fixture
def run(monkeypatch):
    """Run a script; the trainer that it made."""
    train = SFTTrainer.train

    def script(name, *words):
        seen = []

        def watched(self, *args, **kwargs):
            seen.append(self)
            return train(self, *args, **kwargs)

        monkeypatch.setattr(SFTTrainer, "train", watched)
        monkeypatch.setattr("sys.argv", [name, *map(str, words), *COMMON])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return seen[0]

    return script


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save("llava", tmp_path_factory.mktemp("vlm") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set of two configurations, the first with the splits train (4 rows), test (2) and held (3)."""
    folder = tmp_path_factory.mktemp("images")
    Image.effect_noise((40, 30), 80).save(folder / "a.png")
    turns = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "She."}]
    line = json.dumps({"messages": turns, "images": [str(folder / "a.png")]}) + "\n"
    for name, count in (("train", 4), ("test", 2), ("held", 3), ("other", 1)):
        (folder / f"{name}.jsonl").write_text(line * count)
    splits = "".join(f"  - {{split: {name}, path: {name}.jsonl}}\n" for name in ("train", "test", "held"))
    other = "- config_name: other\n  data_files: other.jsonl\n"
    head = f"---\nconfigs:\n- config_name: first\n  default: true\n  data_files:\n{splits}{other}---\n"
    (folder / "README.md").write_text(head)
    return folder


def test_the_script_for_images_trains_on_files_beside_the_data(run, tmp_path, model):
    Image.effect_noise((40, 30), 80).save(tmp_path / "a.png")
    turns = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "She."}]
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"messages": turns, "images": ["a.png"]}) + "\n")
    out = tmp_path / "out"
    for words in ([], ["--own_collator"]):
        base = ["--model_name_or_path", model, "--data", data, "--output_dir", out]
        run("sft_vlm.py", *base, "--lora_target_modules", "all-linear", *words)
        assert (out / "adapter_model.safetensors").is_file()


EVALUATES = ["--eval_strategy", "steps", "--eval_steps", "1"]
OPTIONS = {
    "data": ([], lambda t: len(t.train_dataset), 4),
    "dataset_config": (["--dataset_config", "other"], lambda t: len(t.train_dataset), 1),
    "dataset_train_split": (["--dataset_train_split", "held"], lambda t: len(t.train_dataset), 3),
    "dataset_test_split": (["--dataset_test_split", "held", *EVALUATES], lambda t: len(t.eval_dataset), 3),
    "test_split_size": (["--test_split_size", "1", *EVALUATES], lambda t: len(t.eval_dataset), 1),
    "own_collator": (["--own_collator"], lambda t: type(t.data_collator).__name__, "Collator"),
    "own_collator, evaluated": (["--own_collator", *EVALUATES], lambda t: "eval_loss" in t.state.log_history[0], True),
    "attn_implementation": (
        ["--attn_implementation", "eager"],
        lambda t: t.setup.plan.attention.implementation,
        "eager",
    ),
    "model_init_kwargs": (["--model_init_kwargs", '{"dtype": "bfloat16"}'], lambda t: t.model.dtype, torch.bfloat16),
    "model_revision": (["--model_revision", "v2"], lambda t: t.setup.plan.model.revision, "v2"),
    "dtype": (["--dtype", "bfloat16"], lambda t: t.model.dtype, torch.bfloat16),
    "lora_r": (["--lora_r", "3"], lambda t: t.model.peft_config["default"].r, 3),
    "load_in_4bit": (["--load_in_4bit"], lambda t: t.model.config.quantization_config.load_in_4bit, True),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_the_script_for_images_reads_its_options(run, tmp_path, model, data, option):
    words, read, expected = OPTIONS[option]
    base = ["--model_name_or_path", model, "--data", data, "--output_dir", tmp_path / "out"]
    base += ["--lora_target_modules", "q_proj", "v_proj"]
    assert read(run("sft_vlm.py", *base, *words)) == expected


def test_the_table_has_every_option_that_the_script_itself_declares():
    namespace = runpy.run_path(str(SCRIPTS / "sft_vlm.py"))
    assert {one.name for one in dataclasses.fields(namespace["Data"])} <= set(OPTIONS)
    # the rest of ModelConfig goes through get_peft_config and get_quantization_config, as in the other script
    taken = {one.name for one in dataclasses.fields(ModelConfig)} & set(OPTIONS)
    assert {"attn_implementation", "dtype", "model_revision"} <= taken


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "nowhere.jsonl", "--model_name_or_path", "m"], "error: nowhere.jsonl: no such file"),
        (["--data", "nowhere.jsonl"], "error: no model is named"),
        (["--data", "{data}", "--model_name_or_path", "m", "--dataset_test_split", "tset", *EVALUATES], '"tset"'),
    ],
)
def test_what_is_wrong_is_one_line(run, tmp_path, data, words, said):
    with pytest.raises(SystemExit) as error:
        run("sft_vlm.py", "--output_dir", tmp_path / "out", *(word.format(data=data) for word in words))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_script_for_texts_trains_and_evaluates(run, tmp_path, model_folder):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "say hello", "completion": " hello"}\n' * 8)
    out = tmp_path / "out"
    words = ["--model_name_or_path", model_folder, "--dataset_name", data, "--output_dir", out]
    run("sft.py", *words, "--test_split_size", "0.25", "--eval_strategy", "steps", "--eval_steps", "1")
    assert (out / "adapter_model.safetensors").is_file()
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_loss" in line for line in logged)
