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
    with pytest.raises(DataError, match=r"rows\.jsonl: the data gave no batch: .*24 rows dropped, no supervised"):
        # the answers lie behind what is kept of each row
        run(model_folder, rows, tmp_path / "out", "max_steps=2", "max_length=2")
    assert not list((tmp_path / "out").glob("**/*.safetensors"))


def with_long_prompts(path, long):
    """Twenty-four rows, of which those in `long` have no answer left within 16 tokens, and rows cut elsewhere."""
    rows = [{"prompt": "a " * 40 if i in long else f"say {i}", "completion": "yes"} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_rows_left_out_of_a_stream_are_counted_and_said(model_folder, tmp_path, capsys, workers):
    rows = with_long_prompts(tmp_path / "rows.jsonl", {5, 6, 20})
    words = ("max_steps=4", "max_length=16", f"dataloader_num_workers={workers}", "num_train_epochs=1")
    run(model_folder, rows, tmp_path / "out", *words)
    said = capsys.readouterr().err
    assert "data       train_dataset: 24 rows read of the stream, 21 kept" in said
    assert "data       train_dataset: 3 rows dropped, no supervised token left after truncation (first: row 5)" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (found,) = manifest["data"]["streams"]
    assert (found["rows_read"], found["rows_kept"], list(found["dropped"].values())) == (24, 21, [3])
    assert json.loads((tmp_path / "out" / "ledger.json").read_text())["streams"] == [found]
    assert "3 rows dropped" in (tmp_path / "out" / "README.md").read_text()


def test_sources_of_a_mixed_stream_are_counted_each_for_itself(model_folder, tmp_path, capsys):
    one, two = (with_long_prompts(tmp_path / f"{name}.jsonl", long) for name, long in (("a", {1}), ("b", {2, 3})))
    words = (f"data.train=[{{path: {one}, weight: 1}}, {{path: {two}, name: b, weight: 1}}]",)
    run(model_folder, one, tmp_path / "out", *words, "max_steps=4", "max_length=16")
    said = capsys.readouterr().err
    assert f"train_dataset['{one}']: 24 rows read of the stream, 23 kept" in said
    assert "train_dataset['b']: 2 rows dropped, no supervised token left after truncation (first: row 2)" in said


def test_rows_that_an_evaluation_of_a_stream_leaves_out_are_said(model_folder, tmp_path, capsys):
    from datasets import load_dataset

    from sftcore import SFTConfig, SFTTrainer

    rows = with_long_prompts(tmp_path / "rows.jsonl", {4})
    stream = load_dataset("json", data_files=str(rows), split="train", streaming=True, cache_dir=str(tmp_path))
    args = SFTConfig(str(tmp_path / "out"), max_length=16, max_steps=1, use_cpu=True, report_to="none")
    trainer = SFTTrainer(str(model_folder), args, train_dataset=stream, eval_dataset=stream)
    for _ in range(2):
        trainer.evaluate()
        said = capsys.readouterr().err
        assert "data       eval_dataset: 24 rows read of the stream, 23 kept" in said
        assert "eval_dataset: 1 rows dropped, no supervised token left after truncation (first: row 4)" in said


def test_rows_that_are_too_long_are_counted_as_left_out_of_a_stream(model_folder, tmp_path, capsys):
    rows = with_long_prompts(tmp_path / "rows.jsonl", {5, 6, 20})
    run(model_folder, rows, tmp_path / "out", "max_steps=4", "max_length=16", "long_rows=drop")
    said = capsys.readouterr().err
    assert "data       train_dataset: 24 rows read of the stream, 21 kept" in said
    assert "data       train_dataset: 3 rows dropped, longer than max_length (first: row 5)" in said
