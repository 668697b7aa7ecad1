"""What a run shows of its progress."""

from __future__ import annotations

from transformers import Trainer, TrainingArguments

from sftcore import DataCollatorForLanguageModeling, RichProgressCallback, SFTConfig, SFTTrainer

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
