"""`sftcore replay`: the run again, equal to the last bit, and what is said where it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import sftcore
from sftcore.core.errors import RecipeError
from sftcore.tools.replay import Recorded, checked_again, compare_runs, differences, read_manifest
from tests import commands
from tests.conftest import alpaca_rows, make_llama, make_tokenizer


def run_sftcore(*words: str, code: int = 0) -> str:
    """Run the command; what it printed, both streams."""
    done = commands.sftcore(*words, COLUMNS="200")
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def change(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def first_run(model_folder, tmp_path_factory) -> Path:
    """The folder of a run with an adapter, dropout, an evaluation split and shuffled rows."""
    folder = tmp_path_factory.mktemp("runs")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(24)))
    recipe = folder / "run.yaml"
    recipe.write_text(
        f"model: {model_folder}\ndata: {{train: {rows}, eval_fraction: 0.25}}\n"
        "adapter: {lora: {r: 4, lora_dropout: 0.2}}\nnoise: neftune\n"
        f"output_dir: {folder / 'out'}\nmax_steps: 6\nlogging_steps: 2\nlearning_rate: 1e-2\nuse_cpu: true\n"
        "per_device_train_batch_size: 3\nsave_steps: 3\nhub_token: hf_abcdefghijklmnopqrstuvwxyz\n"
    )
    run_sftcore("train", str(recipe))
    return folder / "out"


@pytest.fixture
def run(first_run, tmp_path) -> Path:
    """A copy of that run's folder, to be changed."""
    return Path(shutil.copytree(first_run, tmp_path / "out"))


def test_a_replay_gives_the_same_weights_and_the_same_curve(run):
    printed = run_sftcore("replay", str(run))
    assert "the environment is the same as that of the run" in printed
    assert "weights: bit-identical" in printed
    assert "curve: identical at all" in printed
    assert "the replay reproduced the run" in printed
    again = run.with_name("out-replay")
    assert (again / "adapter_model.safetensors").read_bytes() == (run / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_replay_of_quickstart_gives_the_same_weights(model_folder, tmp_path):
    run_sftcore("quickstart", f"--model={model_folder}", f"--output={tmp_path / 'quick'}", "--steps=3")
    printed = run_sftcore("replay", str(tmp_path / "quick" / "manifest.json"), f"--output={tmp_path / 'again'}")
    assert "weights: bit-identical" in printed
    assert (tmp_path / "again" / "adapter_model.safetensors").is_file()


def test_other_weights_are_no_replay(run):
    """The seed in the manifest is another than the run's: the weights of both differ, and the exit code says so."""
    recipe = json.loads((run / "manifest.json").read_text())["recipe"]
    change(run, recipe={**recipe, "seed": 1})
    printed = run_sftcore("replay", str(run), code=1)
    assert "tensors differ, by up to" in printed
    assert "curve: different from step 2 onwards" in printed
    assert "the replay did not reproduce the run" in printed


def test_what_differs_is_said_before_anything_is_trained(run, model_folder, tmp_path):
    manifest = json.loads((run / "manifest.json").read_text())
    versions = {**manifest["versions"], "torch": "1.0"}
    environment = {**manifest["environment"], "threads": 64, "processor": "another"}
    sources = {**manifest["sources_sha256"], "adapter lora": "0" * 64}
    change(run, versions=versions, environment=environment, sources_sha256=sources)
    rows = tmp_path / "other.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(23)))
    printed = run_sftcore("replay", str(run), f"data.train={rows}", "--dry-run", code=1)
    assert "differs: torch: 1.0 then, " in printed
    assert "differs: threads: 64 then, 1 now" in printed
    assert "differs: processor: another then, " in printed
    assert "differs: the source of adapter lora has changed" in printed
    assert f"differs: the contents of data file {rows} are not those of " in printed
    assert not run.with_name("out-replay").exists()


def test_a_model_that_was_changed_is_named(run, model_folder, tmp_path):
    other = shutil.copytree(model_folder, tmp_path / "model")
    make_llama(make_tokenizer(), seed=1).save_pretrained(other)
    recorded = read_manifest(str(run))
    checked = checked_again(recorded, str(tmp_path / "again"), [f"model={other}"])
    assert f"the files of model {other} have changed" in list(differences(recorded, checked))


def test_a_moved_model_with_the_same_files_is_no_difference(run, model_folder, tmp_path):
    other = shutil.copytree(model_folder, tmp_path / "model")
    recorded = read_manifest(str(run))
    checked = checked_again(recorded, str(tmp_path / "again"), [f"model={other}"])
    assert not [line for line in differences(recorded, checked) if "model" in line]


def test_the_secret_of_a_recipe_is_neither_written_nor_needed(run):
    assert "hf_abcdefghijklmnopqrstuvwxyz" not in (run / "manifest.json").read_text()
    recorded = read_manifest(str(run))
    assert "hub_token" not in checked_again(recorded, str(run.with_name("again"))).recipe.training


def test_a_run_that_was_ended_early_is_done_again_up_to_that_step(run):
    """Six steps of twelve that were planned: the replay stops after six, on the schedule of twelve."""
    words = json.loads((run / "manifest.json").read_text())["recipe"]
    change(run, recipe={**words, "max_steps": 12}, max_steps=12)
    printed = run_sftcore("replay", str(run), code=1)
    assert "step 6/12" in printed
    assert "step 8/12" not in printed


def test_a_run_from_python_is_refused_with_the_reason(model_folder, tmp_path):
    from datasets import Dataset

    args = sftcore.SFTConfig(str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none")
    trainer = sftcore.SFTTrainer(str(model_folder), args=args, train_dataset=Dataset.from_list(alpaca_rows(4)))
    trainer.train()
    trainer.save_model()
    with pytest.raises(RecipeError, match="the run was started from Python"):
        read_manifest(str(tmp_path / "out"))


def test_what_is_no_manifest_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="there is no manifest"):
        read_manifest(str(tmp_path))
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_manifest(str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"name": "an extension of a browser"}')
    with pytest.raises(RecipeError, match="not the manifest of a run"):
        read_manifest(str(tmp_path))


def test_a_run_without_saved_weights_has_nothing_to_compare_with(run):
    (run / "adapter_model.safetensors").unlink()
    change(run, weights_sha256=None)
    with pytest.raises(RecipeError, match="nothing to compare with"):
        read_manifest(str(run))


def test_the_manifest_alone_suffices(run, tmp_path):
    """Weights are compared by the hash in the manifest where the run's own are gone."""
    recorded = read_manifest(str(run))
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    shutil.copy(run / "manifest.json", lonely)
    verdict = compare_runs(Recorded(lonely / "manifest.json", recorded.manifest), run)
    assert verdict.equal
    assert "metrics.jsonl is not next to its manifest" in verdict.curve


def test_an_override_that_would_make_another_run_is_refused(run):
    with pytest.raises(RecipeError, match='"seed=3" would change the run'):
        checked_again(read_manifest(str(run)), str(run.with_name("again")), ["seed=3"])


def test_a_replay_never_writes_into_a_folder_that_holds_something(run):
    with pytest.raises(RecipeError, match="new or empty output folder"):
        checked_again(read_manifest(str(run)), str(run))


@pytest.mark.parametrize(
    "recipe",
    [{"trust_remote_code": True}, {"model": {"name": "m", "init_kwargs": {"trust_remote_code": True}}}],
    ids=["field", "argument of the model"],
)
def test_that_a_model_is_trusted_is_said_again_by_who_replays_it(run, recipe):
    was = json.loads((run / "manifest.json").read_text())["recipe"]
    change(run, recipe={**was, **recipe})
    recorded = read_manifest(str(run))
    with pytest.raises(
        RecipeError, match=r"sets trust_remote_code, .* is not adopted automatically.*trust_remote_code=true"
    ):
        checked_again(recorded, str(run / "again"))
    again = checked_again(recorded, str(run / "again"), [f"model={was['model']}", "trust_remote_code=true"])
    assert again.recipe.training["trust_remote_code"] is True


@pytest.mark.parametrize(
    "change_to",
    [{"versions": ["x"]}, {"environment": "x"}, {"data_files_sha256": ["x"]}, {"sources_sha256": 3}, {"steps": "x"}],
    ids=lambda one: next(iter(one)),
)
def test_a_manifest_of_another_shape_is_refused(run, change_to):
    change(run, **change_to)
    with pytest.raises(RecipeError, match=f'"{next(iter(change_to))}" is '):
        read_manifest(str(run))


def test_what_is_strange_inside_a_manifest_is_a_difference(run):
    change(run, environment={"variables": ["x"], "threads": {"a": 1}})
    recorded = read_manifest(str(run))
    found = list(differences(recorded, checked_again(recorded, str(run / "again"))))
    assert any(line.startswith("threads a: 1 then") for line in found)


def test_lines_of_a_log_that_are_no_entries_are_passed_over(run, tmp_path):
    again = Path(shutil.copytree(run, tmp_path / "again"))
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'3\n[]\n{"loss": 1}\n\xff\n')
    assert compare_runs(read_manifest(str(run)), again).equal
