"""What a run shows of its progress."""

from __future__ import annotations

import io
from types import SimpleNamespace

from rich.console import Console
from transformers import Trainer, TrainerState, TrainingArguments

from sftcore import DataCollatorForLanguageModeling, RichProgressCallback, SFTConfig, SFTTrainer
from sftcore.train.reporting.progress import RichProgress

ROWS = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}]


def test_the_callback_reports_each_log_of_any_trainer(tmp_path, llama, capsys):
    args = TrainingArguments(
        str(tmp_path), max_steps=2, logging_steps=1, use_cpu=True, report_to="none", save_strategy="no",
        eval_strategy="steps", eval_steps=2, disable_tqdm=True,
    )  # fmt: skip
    collator = DataCollatorForLanguageModeling(0)
    Trainer(llama, args, collator, ROWS, ROWS, callbacks=[RichProgressCallback()]).train()
    first, second, evaluation = capsys.readouterr().err.splitlines()[-3:]
    assert first.startswith("step 1/2  loss ")
    assert " left 0:0" in second
    assert evaluation.startswith("step 2: eval_loss ")


def test_with_sfttrainer_it_shows_accuracy_and_speed(tmp_path, tokenizer, llama, capsys):
    from datasets import Dataset

    args = SFTConfig(str(tmp_path), max_steps=1, logging_steps=1, use_cpu=True, save_strategy="no", disable_tqdm=True)
    rows = Dataset.from_list([{"text": "say hello"}] * 4)
    trainer = SFTTrainer(
        llama, args, train_dataset=rows, processing_class=tokenizer, callbacks=[RichProgressCallback()]
    )
    trainer.train()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step 1/1")]
    assert "accuracy" in line
    assert "supervised)" in line


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_speed_and_time_left_are_of_training_alone_and_of_this_call(monkeypatch):
    clock, console = Clock(), Console(file=io.StringIO(), width=200)
    monkeypatch.setattr("sftcore.train.reporting.clock.time", clock)
    counted = SimpleNamespace(num_tokens=5000, num_supervised_tokens=500)
    shown, state = RichProgress(console, counted), TrainerState(global_step=10, max_steps=14)
    shown.on_train_begin(None, state, None)

    def step(number: int, seconds: float) -> None:
        state.global_step = number
        clock.now += seconds
        shown.on_step_end(None, state, None)
        tokens = {"num_tokens": 5000 + 100 * (number - 10), "num_supervised_tokens": 500 + 10 * (number - 10)}
        shown.on_log(None, state, None, logs={"loss": 1.0, "mean_token_accuracy": 0.5, **tokens})

    step(11, 2.0)
    clock.now += 30.0  # an evaluation
    shown.on_evaluate(None, state, None)
    clock.now += 60.0
    shown.on_save(None, state, None)
    step(12, 2.0)
    lines = console.file.getvalue().splitlines()
    assert [line.partition("0.500  ")[2] for line in lines] == [
        "50 tokens/s (5 supervised)  left 0:06",
        "50 tokens/s (5 supervised)  left 0:04",
    ]
