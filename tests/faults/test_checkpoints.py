"""A checkpoint is whole or not there, and a run goes on from one that is whole."""

from __future__ import annotations

import json
import os
import random
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from sftcore.core.errors import CheckpointError, RecipeError
from sftcore.train.checkpoint.checksums import SEAL, fault, seal
from sftcore.train.checkpoint.folders import choose, clear_leftovers, final_place, newest, place_model, rotate
from tests.faults import runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps that went through undisturbed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    trainer = runs.trainer(folder)
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "out")


def fake(run_dir, name, step, *, sealed=True, **files):
    """A folder that passes for a checkpoint."""
    folder = run_dir / name
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    for file, text in {"rng_state.pth": "rng", **files}.items():
        (folder / file).write_text(text)
    if sealed:
        seal(folder)
    return folder


# --- What a save leaves -----------------------------------------------------------------------------------------------
def test_every_file_of_a_checkpoint_is_in_its_checksums_and_nothing_is_left_aside(run):
    assert runs.checkpoints(run) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert not list(run.glob(".tmp-*"))
    listed = json.loads((run / "checkpoint-4" / SEAL).read_text())["files"]
    assert {*listed, SEAL} == {path.name for path in (run / "checkpoint-4").iterdir()}
    assert fault(run / "checkpoint-4") is None
    written = [path for path in run.rglob("*") if path.is_file()]
    assert not [path for path in written if b".tmp-" in path.read_bytes()]


def test_rotation_keeps_the_best_and_the_newest(tmp_path):
    """The state in the checkpoint names the best one where it is, not where it was written."""
    trainer = runs.trainer(
        tmp_path / "out", save_total_limit=1, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    kept = runs.checkpoints(tmp_path / "out")
    assert "checkpoint-2" in kept  # the loss falls, so the first is the best by this measure
    assert trainer.state.best_model_checkpoint == str(tmp_path / "out" / "checkpoint-2")
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "out" / "checkpoint-2")
    best = load_file(tmp_path / "out" / "checkpoint-2" / "model.safetensors")
    assert torch.equal(trainer.model.model.norm.weight, best["model.norm.weight"])


def test_a_damaged_best_checkpoint_is_not_loaded_at_the_end(run):
    trainer = runs.trainer(run)
    trainer.state.best_model_checkpoint = str(run / "checkpoint-2")
    os.truncate(run / "checkpoint-2" / "model.safetensors", 1000)
    with pytest.raises(CheckpointError, match=r"checkpoint-2 is damaged: model\.safetensors has 1,000 bytes"):
        trainer._load_best_model()


def test_rotation_lets_damaged_ones_and_those_of_later_steps_go_first(tmp_path):
    for step in (10, 20, 900):
        fake(tmp_path, f"checkpoint-{step}", step)
    fake(tmp_path, "checkpoint-15", 15, sealed=False)
    written = fake(tmp_path, "checkpoint-30", 30)
    rotate(tmp_path, 3, written=written, best=None)
    assert runs.checkpoints(tmp_path) == ["checkpoint-10", "checkpoint-20", "checkpoint-30"]
    rotate(tmp_path, 1, written=written, best=str(tmp_path / "checkpoint-10"))
    assert runs.checkpoints(tmp_path) == ["checkpoint-10", "checkpoint-30"]
    rotate(tmp_path, None, written=written, best=None)
    assert len(runs.checkpoints(tmp_path)) == 2


def test_leftovers_of_killed_saves_are_removed_at_the_next_start(run):
    expected = runs.weights_of(run)
    (run / ".tmp-checkpoint-8" / "checkpoint-8").mkdir(parents=True)
    (run / ".tmp-old-checkpoint-1").mkdir()
    (run / "checkpoint-6").rename(run / ".tmp-replaced-checkpoint-6")
    trainer = runs.trainer(run)
    trainer.train(resume_from_checkpoint="auto")
    assert trainer.state.global_step == 6
    assert not list(run.glob(".tmp-*"))
    assert runs.weights_of(run / "checkpoint-6") == expected


def test_a_checkpoint_takes_the_place_of_one_of_its_name(run):
    os.truncate(run / "checkpoint-4" / "optimizer.pt", 5)
    shutil.rmtree(run / "checkpoint-6")
    clear_leftovers(run)
    runs.trainer(run).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert [fault(run / f"checkpoint-{step}") for step in (2, 4, 6)] == [None] * 3


def test_pushes_wait_until_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    from transformers import Trainer

    pushed = []
    trainer = runs.trainer(tmp_path / "out")
    trainer.args.push_to_hub = True
    monkeypatch.setattr(
        Trainer, "_push_from_checkpoint", lambda self, folder: pushed.append((folder, fault_of(folder)))
    )
    monkeypatch.setattr(Trainer, "_finish_current_push", lambda self: None)
    trainer.train()
    assert pushed == [(str(tmp_path / "out" / f"checkpoint-{step}"), None) for step in (2, 4, 6)]


def fault_of(folder):
    from pathlib import Path

    return fault(Path(folder))


# --- Which one a run goes on from -------------------------------------------------------------------------------------
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
@settings(max_examples=60, deadline=None, derandomize="CI" in os.environ)
@given(seed=st.integers(0, 2**32))
def test_a_checkpoint_damaged_at_any_byte_is_refused_and_the_one_before_taken(finished, damage, seed):
    drawn = random.Random(seed)
    files = sorted(path for path in (finished / "checkpoint-6").iterdir() if path.stat().st_size and needed(path))
    path = files[drawn.randrange(len(files))]
    whole = path.read_bytes()
    at = drawn.randrange(len(whole))
    try:
        path.write_bytes(whole[:at] if damage == "truncated" else flipped(whole, at, drawn.randrange(8)))
        with pytest.raises(CheckpointError, match=rf"checkpoint-6 is damaged: {path.name}"):
            choose(finished / "checkpoint-6", finished)
        found = newest(finished)
        assert found.folder == finished / "checkpoint-4"
        assert found.passed_over[0].startswith("checkpoint-6: ")
    finally:
        path.write_bytes(whole)


def needed(path):
    """Whether a run resumes from it: not from descriptions, and not from the arguments beside them."""
    described = path.suffix in (".md", ".json", ".jinja") or path.name == "training_args.bin"
    return not described or path.name.startswith(("trainer_state", "run_state", SEAL))


@pytest.mark.parametrize("damage", ["rewritten", "gone"])
@pytest.mark.parametrize("name", ["README.md", "config.json", "training_args.bin", "chat_template.jinja"])
def test_a_text_that_was_written_again_is_said_and_the_checkpoint_used(run, name, damage):
    expected = runs.weights_of(run)
    path = run / "checkpoint-4" / name
    shutil.rmtree(run / "checkpoint-6")
    if damage == "rewritten":
        path.write_text("{}" if name.endswith("json") else "# another")
    elif name == "config.json":
        pytest.skip("transformers itself looks into it")
    else:
        path.unlink()
    assert newest(run).folder == run / "checkpoint-4"
    trainer = runs.trainer(run)
    with pytest.warns(UserWarning, match=rf"checkpoint-4: {name} .*The checkpoint is used"):
        trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()
    assert runs.weights_of(run) == expected


@pytest.mark.parametrize("text", ["", '{"hidden', "\0"])
def test_a_description_that_cannot_be_read_is_damage(run, text):
    (run / "checkpoint-6" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"checkpoint-6 is damaged: config\.json has"):
        choose(run / "checkpoint-6", run)


def written_again(folder):
    """The weights of a checkpoint as they are, in a file that is spelled in another way."""
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "by": "a callback"})


def test_weights_that_something_wrote_again_are_offered_by_name(run, capsys):
    expected = runs.weights_of(run)
    for step in (2, 4, 6):
        written_again(run / f"checkpoint-{step}")
    found = newest(run)
    assert found.folder is None
    assert found.offer == (
        f"Weights stand in {run}/checkpoint-6 (step 6, whole but for model.safetensors): to resume from them, set "
        f"resume_from_checkpoint: {run}/checkpoint-6 and resume_changed: true."
    )
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .* Weights stand in .*checkpoint-6 \(step 6"):
        choose("last", run)
    with pytest.raises(CheckpointError, match=r"checkpoint-2 is damaged: model.*resume from it with resume_changed"):
        choose(run / "checkpoint-2", run)
    trainer = runs.trainer(run, resume_changed=True)
    with pytest.warns(UserWarning, match=r"checkpoint-2: model\.safetensors .* The checkpoint is used"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    trainer.save_model()
    assert runs.weights_of(run) == expected


def test_weights_that_are_broken_are_not_offered(run):
    for step in (2, 4, 6):
        os.truncate(run / f"checkpoint-{step}" / "model.safetensors", 1000)
    assert newest(run).offer == ""
    with pytest.raises(CheckpointError, match="is damaged: model"):
        choose(run / "checkpoint-6", run, anyway=True)


def test_a_state_that_was_written_again_is_damage_whatever_is_wanted(run):
    written_again(run / "checkpoint-6")
    (run / "checkpoint-6" / "trainer_state.json").write_text('{"global_step": 6}')
    with pytest.raises(CheckpointError, match="is damaged"):
        choose(run / "checkpoint-6", run, anyway=True)


def flipped(content, at, bit):
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def test_auto_passes_over_a_damaged_checkpoint_says_so_and_ends_with_the_same_weights(run, capsys):
    expected = runs.weights_of(run)
    content = (run / "checkpoint-6" / "optimizer.pt").read_bytes()
    (run / "checkpoint-6" / "optimizer.pt").write_bytes(flipped(content, 70_000, 3))
    trainer = runs.trainer(run)
    with pytest.warns(UserWarning, match=r"checkpoint-6: optimizer\.pt is not what was written.* was passed over"):
        trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()
    assert f"resume     {run / 'checkpoint-4'}, step 4" in capsys.readouterr().err
    assert runs.weights_of(run) == expected


def test_a_finished_run_takes_no_further_step(run):
    expected = runs.weights_of(run)
    trainer = runs.trainer(run)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    assert trainer.state.global_step == 6
    assert runs.weights_of(run) == expected


def test_the_step_counts_that_a_checkpoint_records_and_not_its_folder_name(tmp_path):
    fake(tmp_path, "checkpoint-99", 5)
    fake(tmp_path, "kept", 7)
    assert newest(tmp_path).folder == tmp_path / "kept"


def test_auto_begins_from_scratch_where_there_is_none_and_says_so(tmp_path, capsys):
    trainer = runs.trainer(tmp_path / "out", max_steps=1)
    trainer.train(resume_from_checkpoint="auto")
    assert "from scratch" in capsys.readouterr().err
    assert trainer.state.global_step == 1


def test_last_wants_one(tmp_path):
    fake(tmp_path, "checkpoint-3", 3, sealed=False)
    with pytest.raises(CheckpointError, match=r'there is no checkpoint in .* checkpoint-3: it has no .* Use "auto"'):
        choose("last", tmp_path)
    assert choose("auto", tmp_path).folder is None


def test_a_checkpoint_of_another_program_is_taken_by_name_alone(run):
    (run / "checkpoint-6" / SEAL).unlink()
    assert newest(run).folder == run / "checkpoint-4"
    with pytest.warns(UserWarning, match="checkpoint-6 has no checksums"):
        runs.trainer(run).train(resume_from_checkpoint=str(run / "checkpoint-6"))


def test_the_model_alone_is_nothing_to_go_on_from(tmp_path):
    runs.trainer(tmp_path / "out", save_only_model=True, max_steps=2).train()
    found = newest(tmp_path / "out")
    assert found.folder is None
    assert found.passed_over == ("checkpoint-2: it holds the model alone (save_only_model)",)
    assert found.offer.startswith(f"Weights stand in {tmp_path}/out/checkpoint-2 (step 2): to resume from them, set ")


def test_a_run_that_resumes_from_the_model_alone_says_what_starts_anew(tmp_path):
    fields = {"save_only_model": True, "max_steps": 4, "lr_scheduler_type": "linear", "logging_steps": 1}
    runs.trainer(tmp_path / "out", **fields).train()
    trainer = runs.trainer(tmp_path / "out", **fields)
    said = r"holds no optimizer state and no learning rate schedule .* so both start anew, at the first learning rate"
    with pytest.warns(UserWarning, match=said):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_a_callback_that_saves_the_adapter_into_the_checkpoint_leaves_it_whole(tmp_path):
    class Saves(TrainerCallback):
        def on_save(self, args, state, control, model=None, processing_class=None, **_):
            folder = f"{args.output_dir}/checkpoint-{state.global_step}"
            model.save_pretrained(folder)
            processing_class.save_pretrained(folder)

    def trainer(**more):
        adapter = {"adapter": {"lora": {"r": 4, "target_modules": ["q_proj"]}}}
        return runs.trainer(tmp_path / "out", plugins=adapter, **more)

    made = trainer()
    made.add_callback(Saves())
    made.train()
    resumed = trainer()
    with pytest.warns(UserWarning, match=r"README\.md .* The checkpoint is used"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert newest(tmp_path / "out").folder == tmp_path / "out" / "checkpoint-6"


def test_a_folder_that_is_no_checkpoint_is_refused(run):
    with pytest.raises(CheckpointError, match=r"out is not a checkpoint: it has no trainer_state\.json"):
        choose(str(run), run)


def test_files_that_callbacks_add_are_not_judged(run):
    (run / "checkpoint-6" / "notes.txt").write_text("added by a callback")
    assert newest(run).folder == run / "checkpoint-6"


def test_a_recipe_that_names_a_missing_folder_is_refused_before_loading(tmp_path, write):
    from sftcore.config.recipe import parse_recipe
    from sftcore.train.run import check_recipe

    data = write("train.jsonl", '{"text": "x"}\n')
    raw = {"model": "m", "data": str(data), "resume_from_checkpoint": "out/checkpoint-7"}
    with pytest.raises(RecipeError, match="resume_from_checkpoint: there is no folder out/checkpoint-7"):
        check_recipe(parse_recipe(raw))


# --- The model in the output folder -----------------------------------------------------------------------------------
def test_a_final_save_that_is_cut_off_does_not_look_like_a_model(run, tmp_path, monkeypatch):
    """Cut off before each of its moves, the folder holds the model of old, no model, or the new one."""
    old = runs.weights_of(run)
    new = shutil.copytree(run / "checkpoint-2", tmp_path / "new")
    for path in [*new.iterdir()]:
        if path.name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", SEAL):
            path.unlink()
    seen = []
    for moves in range(len([*new.iterdir()]) + 1):
        left, written = iter(range(moves)), shutil.copytree(new, run / ".tmp-model")

        def move(source, target, left=left, replace=shutil.move):
            if next(left, None) is None:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", move)
        try:
            place_model(written, run)
        except KeyboardInterrupt:
            shutil.rmtree(written)
        monkeypatch.undo()
        seen.append((run / "config.json").exists())
    assert seen == [False] * len([*new.iterdir()]) + [True]
    assert runs.weights_of(run) != old


def test_shards_of_an_older_model_do_not_stay_beside_the_new_one(tmp_path):
    old, new = tmp_path / "out", tmp_path / "out" / ".tmp-model"
    new.mkdir(parents=True)
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "metrics.jsonl", "config.json"):
        (old / name).write_text("old")
    for name in ("model.safetensors", "config.json"):
        (new / name).write_text("new")
    place_model(new, old)
    assert {path.name: path.read_text() for path in old.iterdir()} == {
        "metrics.jsonl": "old",
        "model.safetensors": "new",
        "config.json": "new",
    }


def test_an_adapter_leaves_the_base_model_in_its_folder_alone(tmp_path):
    new = tmp_path / ".tmp-model"
    new.mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_text("base")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (new / name).write_text("adapter")
    place_model(new, tmp_path)
    assert (tmp_path / "config.json").read_text() == (tmp_path / "model.safetensors").read_text() == "base"
    assert (tmp_path / "adapter_config.json").read_text() == "adapter"


def test_messages_name_the_place_where_files_will_be(tmp_path):
    assert final_place(tmp_path / ".tmp-checkpoint-4" / "checkpoint-4") == tmp_path / "checkpoint-4"
    assert final_place(tmp_path / ".tmp-model") == tmp_path
