"""`sftcore train` beside training: the plan alone, folders with another run, and what is printed into a file."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sftcore.train.checkpoint.other_run import held_run, remove_run
from tests import commands
from tests.conftest import alpaca_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def data(write) -> Path:
    return write("train.jsonl", "".join(json.dumps(row) + "\n" for row in alpaca_rows(24)))


@pytest.fixture
def train(tmp_path, model_folder, data):
    """Run `sftcore train` in its folder `out` with further words; both streams."""

    def run(
        *words: str, code: int = 0, model: Path = model_folder, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        base = ["--model", str(model), "--data", str(data), f"output_dir={tmp_path / 'out'}", "use_cpu=true"]
        done = commands.sftcore("train", *base, *words, **environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- The plan alone -------------------------------------------------------------------------------------------------
def test_a_dry_run_shows_the_plan_of_the_run_and_leaves_nothing(train, tmp_path):
    words = ["num_train_epochs=2", "per_device_train_batch_size=3", "gradient_accumulation_steps=2"]
    dry = train(*words, "--dry-run")
    assert list(tmp_path.iterdir()) == [tmp_path / "train.jsonl"]
    assert dry.stdout == ""
    wet = train(*words, "logging_steps=1")

    def plan(printed: str) -> list[str]:
        return [line for line in printed.splitlines() if not line.startswith(("dry run ", "data  ", "warning: "))]

    assert plan(dry.stderr) == plan(wet.stderr)
    assert f"output     {tmp_path / 'out'}" in dry.stderr
    # or another test has prepared these rows
    assert "prepared in" in dry.stderr or "found in the cache" in dry.stderr
    tokens = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-2])["num_tokens"]
    assert f"8 steps are 2.00 epochs, about {tokens:,.0f} tokens; nothing was trained or written" in dry.stderr


def test_a_dry_run_finds_what_would_stop_the_run(train):
    assert "leaves no token" in train("max_length=1", "--dry-run", code=1).stderr


def test_a_dry_run_of_a_run_in_progress_changes_none_of_its_files(train, tmp_path):
    train("max_steps=2", "save_steps=2")
    (tmp_path / "out" / ".tmp-checkpoint-4").mkdir()
    before = contents(tmp_path / "out")
    printed = train("max_steps=4", "save_steps=2", "resume_from_checkpoint=auto", "--dry-run").stderr
    assert "4 steps are 1.33 epochs" in printed
    assert "dry run" in train("--dry-run", "overwrite_output_dir=true").stderr
    assert contents(tmp_path / "out") == before
    assert (tmp_path / "out" / ".tmp-checkpoint-4").is_dir()


def test_a_dry_run_says_of_the_folder_what_the_run_says(train, tmp_path):
    train("max_steps=1", "save_steps=1")
    dry, wet = train("max_steps=1", "--dry-run", code=1), train("max_steps=1", code=1)
    assert "the folder holds another run: checkpoint-1" in dry.stderr
    assert dry.stderr == wet.stderr
    said = train("max_steps=1", "overwrite_output_dir=true", "--dry-run").stderr
    assert f"output     {tmp_path / 'out'}: would remove checkpoint-1, model.safetensors" in said
    assert "steps      1, of 8 rows, learning rate" in said
    assert "dry run    1 step is 0.33 epochs" in said
    assert (tmp_path / "out" / "checkpoint-1").is_dir()


def test_a_dry_run_makes_no_repository_and_starts_no_tracker(train):
    """The hub is switched off: whatever asked it would stop the run."""
    for words in (["push_to_hub=true", "hub_model_id=me/x"], ["hub_model_id=me/x", "--push-dry-run"]):
        said = train(*words, "--dry-run").stderr
        assert "dry run" in said
        assert "push       to me/x, public; --push-dry-run alone trains and lists the files" in said
    assert "push  " not in train("hub_model_id=me/x", "--dry-run").stderr


# --- A folder with another run ---------------------------------------------------------------------------------------
def test_another_run_is_replaced_only_where_that_is_asked_for(train, tmp_path):
    out = tmp_path / "out"
    train("max_steps=3", "save_steps=1")
    before = contents(out)
    said = train("max_steps=1", code=1).stderr
    assert said.startswith(f"error: output_dir {out}: the folder holds another run: checkpoint-1, checkpoint-2, check")
    assert "overwrite_output_dir=true" in said
    assert contents(out) == before
    said = train("max_steps=1", "adapter=lora", "save_strategy=no", "overwrite_output_dir=true").stderr
    assert f"output     {out}: removed checkpoint-1, checkpoint-2, checkpoint-3, model.safetensors" in said
    assert {path.name for path in held_run(out)} == {"adapter_model.safetensors"}
    assert not (out / "config.json").exists()  # with which the adapter would be taken for a whole model


def test_a_run_that_resumes_is_the_run_in_the_folder(train, tmp_path):
    train("max_steps=1", "save_steps=1")
    for resume in ("auto", "last", "true", str(tmp_path / "out" / "checkpoint-1")):
        train("max_steps=2", "save_strategy=no", f"resume_from_checkpoint={resume}", "overwrite_output_dir=true")
        assert (tmp_path / "out" / "checkpoint-1").is_dir()
    other = f"resume_from_checkpoint={tmp_path / 'out' / 'checkpoint-1'}"
    train("max_steps=2", other, f"output_dir={tmp_path / 'second'}")
    assert "holds another run" in train("max_steps=2", other, f"output_dir={tmp_path / 'second'}", code=1).stderr


def test_a_run_that_failed_before_its_first_save_can_be_started_again(train, tmp_path):
    train("max_steps=1", "save_strategy=no")
    out = tmp_path / "out"
    for path in held_run(out):
        path.unlink()
    assert (out / "manifest.json").is_file()
    train("max_steps=1")


@pytest.mark.parametrize(
    "words",
    [[], ["overwrite_output_dir=true"], ["resume_from_checkpoint=auto"], ["adapter=lora"]],
    ids=["nothing", "overwrite", "auto", "adapter"],
)
def test_a_model_is_not_trained_into_its_own_folder(words, train, tmp_path):
    """Here it is a run's folder, which holds a checkpoint too."""
    train("max_steps=1", "save_steps=1")
    before = contents(tmp_path / "out")
    said = train("max_steps=1", *words, model=tmp_path / "out" / "checkpoint-1" / "..", code=1).stderr
    assert "this is the folder of the model that is trained" in said
    assert "overwrite_output_dir" not in said
    assert contents(tmp_path / "out") == before


def test_what_a_run_starts_from_is_not_removed_before(train, tmp_path):
    """Its adapter lies elsewhere, and the model below that is in the folder."""
    out, lora = tmp_path / "out", tmp_path / "lora"
    train("max_steps=1", "save_strategy=no")
    base = (out / "model.safetensors").read_bytes()
    words = ["max_steps=1", "save_strategy=no"]
    train(*words, "adapter=lora", f"output_dir={lora}", model=out)
    assert f"{out}: removed" not in train(*words, "overwrite_output_dir=true", model=lora).stderr
    assert (out / "model.safetensors").read_bytes() == base


def test_a_run_whose_schedule_fails_changes_nothing_in_the_folder(train, tmp_path):
    train("max_steps=1", "save_steps=1")
    before = contents(tmp_path / "out")
    schedule = ["lr_scheduler_type=inverse_sqrt", "lr_scheduler_kwargs={timescale: 0}"]
    train("max_steps=1", "overwrite_output_dir=true", *schedule, code=1)
    assert contents(tmp_path / "out") == before


def test_a_run_whose_first_step_fails_changes_nothing_in_the_folder(train, tmp_path, model_folder):
    out, broken = tmp_path / "out", tmp_path / "broken"
    train("max_steps=1", "save_steps=1")
    before = contents(out)
    shutil.copytree(model_folder, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(math.nan)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    said = train("max_steps=1", "overwrite_output_dir=true", model=broken, code=1).stderr
    assert "nan" in said.lower()
    assert contents(out) == before


def test_a_run_that_would_resume_replaces_nothing_where_it_has_no_checkpoint(train, tmp_path):
    out = tmp_path / "out"
    train("max_steps=1", "save_strategy=no")
    before = contents(out)
    said = train("max_steps=1", "resume_from_checkpoint=auto", code=1).stderr
    assert "the folder holds another run: model.safetensors. Name another output_dir, or replace it with" in said
    assert contents(out) == before
    said = train("max_steps=1", "resume_from_checkpoint=auto", "overwrite_output_dir=true").stderr
    assert f"output     {out}: removed model.safetensors" in said


def test_only_what_a_run_writes_is_removed(tmp_path):
    names = [
        "notes.md",
        "model.safetensors",
        "model-00001-of-2.safetensors",
        "config.json",
        "data.jsonl",
        "adapter_config.json",
    ]
    for name in names:
        (tmp_path / name).write_text("x")
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-of-mine").mkdir()
    remove_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.md", "data.jsonl", "checkpoint-of-mine"}
    assert held_run(tmp_path / "nowhere") == []


# --- What is printed -------------------------------------------------------------------------------------------------
def test_a_log_is_one_line_where_there_is_no_terminal(train):
    done = train(
        "max_steps=3", "logging_steps=1", "data.eval_fraction=0.5", "eval_strategy=steps", "eval_steps=1", COLUMNS="40"
    )
    lines = done.stdout.splitlines()
    assert [line.partition("  ")[0].partition(":")[0] for line in lines[:-1]] == [
        "step 1/3", "step 1", "step 2/3", "step 2", "step 3/3", "step 3",
    ]  # fmt: skip
    assert all("left" in line for line in lines[:-1:2])


def test_reports_of_libraries_have_no_escape_codes_and_warnings_are_one_line(tmp_path):
    code = (
        "import logging, sys, warnings\nfrom sftcore import cli\n"
        "def act(**_):\n"
        "    logging.warning('\\x1b[1mLOAD REPORT\\x1b[0m from: M \\x1b[38;5;208m\\x1b]0;owned\\x07')\n"
        "    warnings.warn('\\x1b[31mfirst\\n   second\\x1b[0m')\n"
        "cli.cli = act\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines() == [
        "WARNING:root:LOAD REPORT from: M \\x1b]0;owned\\x07",
        "warning: first second",
    ]
