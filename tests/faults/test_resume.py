"""A run that goes on from a checkpoint ends with the weights and the curve of the run that never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import runs
from transformers import TrainerCallback

from sftcore.core.errors import ResumeError
from sftcore.train.checkpoint.same_run import differences
from sftcore.train.checkpoint.state import RunState, rewind_log
from tests.conftest import make_llama, make_tokenizer

TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_runtime",
         "eval_samples_per_second", "eval_steps_per_second")  # fmt: skip
ROWS = [{"prompt": f"say {i}", "completion": " hello" * (1 + i % 5) + f" {i}"} for i in range(43)]


class Killed(Exception):
    """Stands in for the power going off: nothing of the trainer's own end is reached."""


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Killed


def a_set(kind: str) -> Any:
    from datasets import Dataset, IterableDataset

    rows = Dataset.from_list(ROWS)
    if kind == "map":
        return rows
    if kind == "shards":
        return rows.to_iterable_dataset(num_shards=3)
    return IterableDataset.from_generator(lambda: iter(ROWS))


def make(folder: Path, kind: str = "map", **fields: Any):
    from sftcore import SFTConfig, SFTTrainer

    settings: dict[str, Any] = {
        "max_steps": 11, "save_steps": 4, "logging_steps": 3, "per_device_train_batch_size": 2, "report_to": "none",
        "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "lr_scheduler_type": "cosine", "use_cpu": True,
        "disable_tqdm": True, "gradient_checkpointing": False, "max_length": 32, "dataset_cache": False,
        "plugins": {"noise": ["neftune"]},
    }  # fmt: skip
    tokenizer = make_tokenizer()
    args = SFTConfig(output_dir=str(folder), **{**settings, **fields})
    model = make_llama(tokenizer, attention_dropout=0.1)
    evaluated = a_set("map").select(range(5)) if "eval_strategy" in fields else None
    return SFTTrainer(model, args, train_dataset=a_set(kind), eval_dataset=evaluated, processing_class=tokenizer)


def curve(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what the clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def history(trainer) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in trainer.state.log_history]


def uninterrupted(folder: Path, kind: str, **fields: Any):
    trainer = make(folder, kind, **fields)
    trainer.train()
    trainer.save_model()
    return trainer


def killed_and_resumed(folder: Path, kind: str, kill_at: int, *, before_resume: Any = None, **fields: Any):
    trainer = make(folder, kind, **fields)
    trainer.add_callback(KillAt(kill_at))
    with pytest.raises(Killed):
        trainer.train()
    if before_resume is not None:
        before_resume()
    trainer = make(folder, kind, **fields)
    trainer.train(resume_from_checkpoint="last")
    trainer.save_model()
    return trainer


CASES = {
    "map": {"max_steps": 26},  # eleven steps an epoch, the checkpoints of 12 and 24 inside of one
    "map packed": {"packing": True},
    "map with evaluation": {"eval_strategy": "steps", "eval_steps": 2},
    "map, grouped by length": {"train_sampling_strategy": "group_by_length", "max_steps": 26},
    "shards": {"max_steps": 26},
    "shards packed": {"packing": True},
    "generator with evaluation": {"eval_strategy": "steps", "eval_steps": 2},
    "generator packed": {"packing": True, "max_steps": 14},
    "generator, shuffled": {"shuffle_dataset": True, "max_steps": 26},
    "generator, one row a step": {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_weights_and_curve_are_those_of_the_run_that_never_stopped(case, tmp_path):
    kind, fields = case.split(",")[0].split()[0], CASES[case]
    whole = uninterrupted(tmp_path / "whole", kind, **fields)
    steps = whole.state.max_steps
    resumed = killed_and_resumed(tmp_path / "out", kind, steps - 2, **fields)
    assert curve(tmp_path / "out") == curve(tmp_path / "whole")
    assert history(resumed) == history(whole)
    assert runs.weights_of(tmp_path / "out") == runs.weights_of(tmp_path / "whole")
    assert len([line for line in curve(tmp_path / "out") if "loss" in line]) >= steps // 3


class KillAtSave(TrainerCallback):
    """Kills behind a save, so that what was due after it is not done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize(("kind", "kill_at"), [("map", 11), ("map", 22), ("generator", 11)])
def test_what_was_due_at_the_end_of_an_epoch_is_done_after_the_resume(kind, kill_at, tmp_path):
    length = {"num_train_epochs": 2, "max_steps": -1} if kind == "map" else {"max_steps": 14}
    fields = {"save_steps": 11, "eval_strategy": "epoch", "eval_on_start": True, **length}
    whole = uninterrupted(tmp_path / "whole", kind, **fields)
    trainer = make(tmp_path / "out", kind, **fields)
    trainer.add_callback(KillAtSave(kill_at))
    with pytest.raises(Killed):
        trainer.train()
    resumed = make(tmp_path / "out", kind, **fields)
    resumed.train(resume_from_checkpoint="last")
    resumed.save_model()
    assert [line["step"] for line in history(whole) if "eval_loss" in line][:2] == [0, 11]
    assert curve(tmp_path / "out") == curve(tmp_path / "whole")
    assert history(resumed) == history(whole)
    assert runs.weights_of(tmp_path / "out") == runs.weights_of(tmp_path / "whole")


def test_a_packed_stream_goes_on_in_its_window_and_prepares_no_earlier_one(tmp_path, monkeypatch):
    from sftcore.data.store import stream

    monkeypatch.setattr(stream, "BATCH", 10)  # the smallest window is as many rows as a block has tokens
    prepared: list[int] = []
    kept_rows = stream.kept_rows
    monkeypatch.setattr(stream, "kept_rows", lambda table: prepared.append(len(table)) or kept_rows(table))
    fields = {"packing": True, "max_length": 16, "per_device_train_batch_size": 1, "max_steps": 10, "save_steps": 7}
    whole = uninterrupted(tmp_path / "whole", "shards", **fields)
    first_time = list(prepared)
    resumed = killed_and_resumed(tmp_path / "out", "shards", 9, before_resume=prepared.clear, **fields)
    state = RunState.read(tmp_path / "out" / "checkpoint-7", 0)
    assert state is not None
    assert state.stream is not None
    place = state.stream["stream"]["examples_iterable"]
    assert place["num_examples_since_previous_state"] > 0  # within a window
    assert place["previous_state_example_idx"] == 16  # the second
    assert history(resumed) == history(whole)
    # each run looks at the first window, to know the stream again; what is trained on follows
    assert first_time == [16, 16, 16]
    assert prepared == [16, 16]


# --- metrics.jsonl ----------------------------------------------------------------------------------------------------
def test_the_log_goes_back_to_the_lines_that_the_checkpoint_knows(write):
    known = [{"loss": 2.5, "epoch": 0.5, "step": 3}, {"epoch": 1.0, "loss": 1.25, "step": 6}]
    path = write("metrics.jsonl", '{"step": 3, "loss": 2.5, "epoch": 0.5}\n{"step": 6, "lo')
    rewind_log(path, known)
    lines = path.read_text().splitlines()
    assert lines[0] == '{"step": 3, "loss": 2.5, "epoch": 0.5}'  # as it was written
    assert json.loads(lines[1]) == known[1]
    path.write_text(path.read_text() + '{"step": 9, "loss": 1.0}\n')
    rewind_log(path, known[:1])
    assert path.read_text().splitlines() == lines[:1]


# --- Another run ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "out"
    trainer = make(folder, max_steps=2, save_steps=2, gradient_accumulation_steps=1)
    trainer.train()
    return folder / "checkpoint-2"


def go_on(tmp_path, stopped, **fields: Any):
    fields = {"max_steps": 3, "save_steps": 2, "gradient_accumulation_steps": 1, **fields}
    trainer = make(tmp_path / "out", **fields)
    return trainer, trainer.train(resume_from_checkpoint=str(stopped))


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"learning_rate": 2e-2}, "setting learning_rate: 0.01 in the checkpoint, 0.02 now"),
        ({"max_length": 6}, "the training rows: "),
        ({"plugins": {"noise": {"neftune": {"alpha": 7.0}}}}, 'plugin noise neftune: sftcore '),
        ({"seed": 7}, "setting seed: 42 in the checkpoint, 7 now"),
    ],
)  # fmt: skip
def test_a_changed_run_is_refused_with_the_difference_before_a_weight_changes(fields, shown, stopped, tmp_path):
    trainer = make(tmp_path / "out", **{"max_steps": 3, "gradient_accumulation_steps": 1, **fields})
    before = trainer.model.model.embed_tokens.weight.clone()
    with pytest.raises(ResumeError, match="resume_changed: true") as caught:
        trainer.train(resume_from_checkpoint=str(stopped))
    assert shown in str(caught.value)
    assert bool((trainer.model.model.embed_tokens.weight == before).all())


def test_a_changed_template_is_refused(stopped, tmp_path):
    trainer = make(tmp_path / "out", max_steps=3, gradient_accumulation_steps=1)
    trainer.data.tokenizer.chat_template += "{# another #}"
    with pytest.raises(ResumeError, match="the chat template: "):
        trainer.train(resume_from_checkpoint=str(stopped))


def test_a_changed_run_goes_on_where_that_is_wanted_and_says_what_changed(stopped, tmp_path):
    with pytest.warns(UserWarning, match="setting learning_rate: 0.01 in the checkpoint, 0.02 now"):
        trainer, _ = go_on(tmp_path, stopped, learning_rate=2e-2, resume_changed=True)
    assert trainer.state.global_step == 3


def test_what_does_not_change_training_may_differ_and_a_longer_run_is_announced(stopped, tmp_path, capsys):
    trainer, _ = go_on(tmp_path, stopped, logging_steps=1, save_steps=1, run_name="other", on_nonfinite="skip")
    assert trainer.state.global_step == 3
    assert "setting max_steps: 2 in the checkpoint, 3 now" in capsys.readouterr().err
    assert [line["step"] for line in curve(tmp_path / "out")] == [3, 3]


def test_a_difference_in_a_long_value_is_told_by_its_hash():
    [(_, text)] = differences({"a": "x" * 100}, {"a": "x" * 99 + "y"})
    first, second = text.split(" in the checkpoint, ")
    assert first != second
    assert len(text) < 200


def test_another_evaluation_set_is_said_and_another_file_under_a_stream_refused(tmp_path, capsys):
    def run(evaluated: int, *, stream: str = "", **fields: Any):
        settings = {"max_steps": 2, "save_steps": 2, "gradient_accumulation_steps": 1, "eval_strategy": "steps"}
        trainer = make(tmp_path / "out", "shards" if stream else "map", **settings, **fields)
        trainer.eval_dataset = trainer.eval_dataset.select(range(evaluated))
        trainer.recorder.train_files_sha256 = [stream] if stream else ()
        return trainer

    run(5).train()
    capsys.readouterr()
    run(4).train(resume_from_checkpoint="last")
    assert "resume     the evaluation rows: " in capsys.readouterr().err
    run(5, stream="one").train()
    with pytest.raises(ResumeError, match="the stream's files: "):
        run(5, stream="other").train(resume_from_checkpoint="last")
