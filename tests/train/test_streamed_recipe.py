"""A recipe whose training rows are read as they are needed."""

from __future__ import annotations

import json
import os

import pytest
from rich.console import Console

from sftcore.config.recipe import load_recipe
from sftcore.core.errors import ConflictError, DataError, RecipeError, ResumeError
from sftcore.train.record import manifest
from sftcore.train.record.environment import sampled_sha256
from sftcore.train.run import check_recipe, run_recipe


def write_rows(path, number=24, broken=None):
    lines = [json.dumps({"prompt": f"say {i}", "completion": f"The answer is {i}"}) for i in range(number)]
    if broken is not None:
        lines[broken] = '{"prompt": "say", '
    path.write_text("\n".join(lines) + "\n")
    return path


def run(model, rows, out, *words):
    """Train four steps on a stream; the trainer."""
    common = (
        f"model={model}", f"data.train={rows}", "data.streaming=true", f"output_dir={out}", "use_cpu=true",
        "per_device_train_batch_size=2", "report_to=none", "logging_steps=1", "learning_rate=1e-2",
        "gradient_checkpointing=false",
    )  # fmt: skip
    return run_recipe(check_recipe(load_recipe(None, [*common, *words])), Console(quiet=True)).trainer


def test_a_stream_is_trained_on_in_the_order_of_its_file(model_folder, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl")
    unstreamed = ("data.streaming=false", "train_sampling_strategy=sequential")
    streamed = run(model_folder, rows, tmp_path / "a", "max_steps=6")
    whole = run(model_folder, rows, tmp_path / "b", "max_steps=6", *unstreamed)
    losses = [[line["loss"] for line in one.state.log_history if "loss" in line] for one in (streamed, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert len(losses[0]) == 6


def test_a_folder_that_save_to_disk_wrote_is_streamed(model_folder, tmp_path):
    from datasets import Dataset

    rows = write_rows(tmp_path / "rows.jsonl")
    Dataset.from_json(str(rows), cache_dir=str(tmp_path)).save_to_disk(tmp_path / "saved")
    assert run(model_folder, tmp_path / "saved", tmp_path / "out", "max_steps=2").state.global_step == 2


def test_a_stream_resumes_and_is_refused_where_its_file_has_changed_far_behind_its_beginning(model_folder, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl")
    run(model_folder, rows, tmp_path / "out", "max_steps=2", "save_steps=2")
    again = ("max_steps=4", "resume_from_checkpoint=last")
    assert run(model_folder, rows, tmp_path / "out", *again).state.global_step == 4
    rows.write_text(rows.read_text().replace("say 20", "say 21"))
    with pytest.raises(ResumeError, match="the stream's files: "):
        run(model_folder, rows, tmp_path / "out", *again)


def test_a_broken_line_met_while_streaming_is_named(model_folder, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", 3000, broken=500)
    with pytest.raises(DataError, match=r"rows\.jsonl line 501: broken JSON"):
        run(model_folder, rows, tmp_path / "out", "max_steps=2")


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        ((), ConflictError, "epochs have no length. Add max_steps"),
        (("max_steps=2", "data.eval_fraction=0.5"), RecipeError, "eval_fraction does not work with streaming"),
    ],
)
def test_what_a_stream_cannot_do_is_refused_before_anything_is_loaded(model_folder, tmp_path, words, error, said):
    with pytest.raises(error, match=said):
        run(model_folder, write_rows(tmp_path / "rows.jsonl"), tmp_path / "out", *words)


def test_a_file_of_a_stream_is_not_read_whole_before_the_first_step(model_folder, tmp_path, monkeypatch):
    whole = []
    monkeypatch.setattr(manifest, "sha256_of_files", lambda paths: whole.extend(paths) or {})
    rows = write_rows(tmp_path / "rows.jsonl")
    trainer = run(model_folder, rows, tmp_path / "out", "max_steps=1")
    assert rows not in whole
    assert trainer.recorder.train_files_sha256 == [sampled_sha256(rows)]


def test_samples_tell_files_apart_that_take_long_to_read(tmp_path):
    digests = set()
    for size, end in ((2**40, b"a"), (2**40, b"b"), (2**40 + 1, b"a")):  # sparse: a terabyte that takes no space
        path = tmp_path / f"{size}{end}"
        with path.open("wb") as file:
            os.truncate(path, size)
            file.seek(size - 1)
            file.write(end)
        digests.add(sampled_sha256(path))
    assert len(digests) == 3


def test_a_stream_of_which_no_row_is_kept_is_an_error_and_saves_nothing(model_folder, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"rows\.jsonl: the data gave no batch: none of their rows is kept"):
        # the answers lie behind what is kept of each row
        run(model_folder, rows, tmp_path / "out", "max_steps=2", "max_length=2")
    assert not list((tmp_path / "out").glob("**/*.safetensors"))
