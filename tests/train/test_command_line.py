"""`sftcore train` and `explain` as a user types them, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands
from tests.conftest import alpaca_rows


def sftcore(*words: str, code: int = 0, fresh: bool = False, cwd: Path | None = None) -> str:
    """Run the command, in a fresh Python if so wanted; what it printed, both streams."""
    if fresh:
        done = subprocess.run(
            [sys.executable, "-m", "sftcore", *words], capture_output=True, text=True,
            env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
    else:
        done = commands.sftcore(*words, cwd=cwd, COLUMNS="200")
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def train_file(write) -> Path:
    return write("train.jsonl", "".join(json.dumps(row) + "\n" for row in alpaca_rows(24)))


def test_a_recipe_trains_and_leaves_everything_behind(tmp_path, write, model_folder, train_file):
    recipe = write(
        "r.yaml",
        f"model: {model_folder}\ndata: {{train: {train_file}, eval_fraction: 0.25}}\nadapter: {{lora: {{r: 4}}}}\n"
        f"output_dir: {tmp_path / 'out'}\nmax_steps: 6\nlogging_steps: 2\nlearning_rate: 1e-2\nuse_cpu: true\n"
        "per_device_train_batch_size: 3\neval_strategy: steps\neval_steps: 3\n",
    )
    printed = sftcore("train", str(recipe), "adapter.lora.r=2", "max_steps=4", "logging_steps=2", fresh=True)
    assert "kernels-community" not in printed  # bitsandbytes offers some for download
    assert "format alpaca, collator flattened, loader hf, adapter lora, attention varlen, loss nll" in printed
    assert "step 2/4  loss" in printed
    assert "supervised)  memory " in printed
    assert "step 3: eval_loss" in printed
    assert f"saved in {tmp_path / 'out'}" in printed
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["recipe"]["adapter"] == {"lora": {"r": 2}}
    assert list(manifest["data_files_sha256"]) == [str(train_file)]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2


def test_a_run_resumes_from_the_last_checkpoint(tmp_path, model_folder, train_file):
    words = [
        f"model={model_folder}",
        f"data={train_file}",
        f"output_dir={tmp_path / 'out'}",
        "save_steps=2",
        "logging_steps=1",
    ]
    sftcore("train", *words, "max_steps=2")
    printed = sftcore("train", *words, "max_steps=4", "resume_from_checkpoint=true")
    assert "step 3/4" in printed
    assert "step 2/4" not in printed


def test_a_first_run_has_nothing_to_resume_from(tmp_path, model_folder, train_file):
    words = [f"model={model_folder}", f"data={train_file}", f"output_dir={tmp_path / 'out'}", "save_strategy=no"]
    printed = sftcore("train", *words, "resume_from_checkpoint=last", code=1)
    assert "there is no checkpoint in" in printed
    assert "loss " in sftcore("train", *words, "resume_from_checkpoint=false", "max_steps=1")


def test_a_warning_is_one_line_shown_once(tmp_path, model_folder, train_file):
    words = [f"model={model_folder}", f"data={train_file}", f"output_dir={tmp_path / 'out'}", "max_steps=1"]
    printed = sftcore("train", *words, "label_smoothing_factor=0.1")
    assert printed.count("warning: label_smoothing_factor is deprecated, use a loss plugin.") == 1


def test_what_a_template_leaves_out_is_counted_once_for_all_rows(model_folder, write):
    row = {"messages": [{"role": "user", "content": "say hello"}], "tools": '[{"name": "now"}]'}
    rows = write("chat.jsonl", (json.dumps(row) + "\n") * 3)
    printed = sftcore("train", f"model={model_folder}", f"data={rows}", "max_steps=1", f"output_dir={rows}.out")
    assert printed.count("3 rows: tools left out, because the chat template does not render them") == 1


def test_explain_says_who_answers_each_hook_and_where(model_folder, train_file):
    printed = sftcore("explain", f"model={model_folder}", f"data={train_file}", "attention=eager")
    assert "alpaca@sftcore" in printed
    assert "eager@sftcore" in printed
    line = next(line for line in printed.splitlines() if line.strip().startswith("make_loss"))
    file, _, number = line.split()[-1].rpartition(":")
    assert "def make_loss" in "".join(
        Path(file).read_text().splitlines(keepends=True)[int(number) - 1 : int(number) + 1]
    )


def imports_of(*words: str) -> subprocess.CompletedProcess[str]:
    """A run of `sftcore train` that prints how it ended and which heavy packages it imported."""
    code = (
        "import sys; sys.argv = ['sftcore', 'train', *sys.argv[1:]]\n"
        "from sftcore.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: print('exit', stop.code)\n"
        "print('heavy', [name for name in ('torch', 'transformers', 'datasets', 'peft') if name in sys.modules])"
    )
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


EARLY = """
import sys
from sftcore import hookimpl, plugin

@plugin
class Early:
    "Noise that has to be there before transformers is, and adds none."

    @hookimpl
    def prepare(self, plan):
        print("there already", sorted({"torch", "transformers", "peft"} & set(sys.modules)), file=sys.__stdout__)
        sys.__stdout__.flush()
        raise KeyboardInterrupt
"""


def test_plugins_prepare_before_anything_heavy_is_imported(model_folder, train_file, tmp_path, monkeypatch):
    info = tmp_path / "acme_early-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme_early\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sftcore.noise]\nearly = acme_early:Early\n")
    (tmp_path / "acme_early.py").write_text(EARLY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    done = imports_of(f"model={model_folder}", f"data={train_file}", "noise=early", f"output_dir={tmp_path / 'out'}")
    assert "there already []" in done.stdout, done.stderr


def test_a_wrong_recipe_fails_before_anything_heavy_is_imported(model_folder, train_file):
    words = [f"model={model_folder}", f"data={train_file}", "adapter.lora.rank=4", "loss=nnl", "fp16=true"]
    done = imports_of(*words)
    assert "exit 1" in done.stdout
    assert "heavy []" in done.stdout
    assert 'unknown key "rank"' in done.stderr
    assert 'no loss named "nnl". Did you mean "nll"?' in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["fp16=true", "bf16=true"], "fp16 and bf16 contradict each other"),
        (["eval_strategy=steps"], "the data have no evaluation set"),
        (["max_length=1"], "leaves no token to predict"),
        (["--block", "loss:nll"], 'loss "nll" is blocked'),
        (["attention=flash-9"], 'no attention named "flash-9"'),
        (["adapter=lroa"], 'no adapter named "lroa". Did you mean "lora"?'),
        (["adapter.lora.peft_type=IA3", "adapter.lora.r=4"], "only LoRA takes r, not IA3"),
        (["loss=nll@acme"], 'no loss named "nll" in the distribution "acme". It comes from: "sftcore"'),
    ],
)
def test_contradictions_and_unknown_names_are_refused(model_folder, train_file, words, said):
    base = [f"model={model_folder}", f"data={train_file}"]
    assert said in sftcore("train", *base, *words, code=1)


def test_a_model_folder_without_tokenizer_weights_or_config_is_refused(tmp_path, model_folder, train_file):
    import shutil

    for missing, said in (
        ("tokenizer.json", "the folder has no tokenizer"),
        ("model.safetensors", "the folder has no weights"),
        ("config.json", "the folder has no config.json"),
    ):
        folder = tmp_path / missing
        shutil.copytree(model_folder, folder)
        (folder / missing).unlink()
        assert said in sftcore("train", f"model={folder}", f"data={train_file}", code=1)
    assert "no such folder or file" in sftcore("train", "model=./nowhere", f"data={train_file}", code=1)


def test_an_unknown_hub_model_offline_is_one_clear_error(train_file):
    printed = sftcore("train", "model=nobody/nothing", f"data={train_file}", code=1)
    assert printed.splitlines()[-1].startswith("error: model nobody/nothing: there is no folder of this name here.")


def test_a_name_without_a_folder_says_so_and_offers_the_near_one(train_file, model_folder):
    words = ["train", f"data={train_file}", "output_dir=never"]
    wrong = model_folder.with_name(f"{model_folder.name}x")
    printed = sftcore(*words, f"model={wrong.name}", cwd=wrong.parent, code=1)
    assert f'model {wrong.name}: there is no folder of this name here. Did you mean "{model_folder.name}"?' in printed
    assert "processing_class" not in printed
    printed = sftcore(*words, f"model={train_file}", code=1)
    assert "this is a file, and a model is a folder, a .gguf file or an id on the hub" in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=FOLDER/config.json"], "this is a file, and a model is a folder, a .gguf file or an id on the hub"),
        (["model=FOLDER/model.safetensors"], "If the model's files lie beside it, name their folder"),
        (["model=FOLDER", "resume_from_checkpoint=last"], "there is no checkpoint in"),
        (["model=FOLDER", "resume_from_checkpoint=true"], "there is no checkpoint in"),
        (["model=FOLDER", "resume_from_checkpoint=FOLDER"], "is not a checkpoint: it has no trainer_state.json"),
    ],
)
def test_what_is_no_model_and_no_checkpoint_is_known_by_its_files_before_torch(
    model_folder, train_file, tmp_path, words, said
):
    words = [word.replace("FOLDER", str(model_folder)) for word in words]
    done = imports_of(*words, f"data={train_file}", f"output_dir={tmp_path / 'out'}")
    assert done.stdout.splitlines() == ["exit 1", "heavy []"]
    assert done.stderr.startswith("error: ")
    assert said in done.stderr


def test_an_unknown_verb_offers_the_nearest():
    assert 'There is no verb "trian". Did you mean "train"?' in sftcore("trian", code=2)
    assert "Give a recipe file, key=value pairs or both" in sftcore("train", code=2)
