"""A system prompt for all rows: put before conversations without one, left to those that have one, and said."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from datasets import Dataset

from sftcore import SFTConfig, SFTTrainer
from sftcore.cli import cli
from sftcore.data.rules.system_prompt import ADDED, NOT_ADDED
from tests.data.test_pipeline import preparation

USER, ANSWER = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}
BEFORE = "<|im_start|>system\nBe kind.<|im_end|>\n"
REST = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nworld<|im_end|>\n"


def texts_of(tokenizer, rows, **fields):
    data = preparation(tokenizer, system_prompt="Be kind.", **fields)
    made = data.prepare(rows if not isinstance(rows, list) else Dataset.from_list(rows), "train_dataset")
    return [tokenizer.decode(row["input_ids"]) for row in made], data


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"prompt": [USER], "completion": [ANSWER]},
        {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "world"}]},
        {"instruction": "hello", "input": "", "output": "world"},
    ],
    ids=["messages", "prompt", "sharegpt", "alpaca"],
)
def test_every_shape_of_conversation_gets_it(tokenizer, row):
    texts, data = texts_of(tokenizer, [row])
    assert texts == [BEFORE + REST]
    assert data.ledgers[0].notes[ADDED] == 1


def test_a_system_turn_of_a_row_is_kept(tokenizer):
    rows = [[{"role": role, "content": "Be brief."}, USER, ANSWER] for role in ("system", "developer")]
    texts, data = texts_of(tokenizer, [{"messages": row} for row in [*rows, [USER, ANSWER]]])
    assert [text.count("Be kind.") for text in texts] == [0, 0, 1]
    assert data.ledgers[0].notes[ADDED] == 1


def test_rows_that_are_no_conversations_are_counted(tokenizer):
    for row in ({"text": "hello"}, {"prompt": "hello", "completion": "world"}):
        texts, data = texts_of(tokenizer, [row])
        assert "Be kind." not in texts[0]
        assert data.ledgers[0].notes[NOT_ADDED] == 1


def test_it_is_not_trained_when_answers_alone_are(tokenizer):
    data = preparation(tokenizer, system_prompt="Be kind.", assistant_only_loss=True)
    (row,) = data.prepare(Dataset.from_list([{"messages": [USER, ANSWER]}]), "train_dataset")
    assert tokenizer.decode([label for label in row["labels"] if label >= 0]) == "world<|im_end|>"


def test_streams_and_worker_processes_get_it_too(tokenizer):
    rows = Dataset.from_list([{"messages": [USER, ANSWER]}] * 3)
    assert texts_of(tokenizer, rows.to_iterable_dataset())[0] == [BEFORE + REST] * 3
    assert texts_of(tokenizer, rows, dataset_num_proc=2, dataset_cache=False)[0] == [BEFORE + REST] * 3


def test_the_cache_knows_the_prompt(tokenizer):
    rows = Dataset.from_list([{"messages": [USER, ANSWER]}])
    lengths = {len(preparation(tokenizer, system_prompt=one).prepare(rows, "t")[0]["input_ids"])
               for one in (None, "x", "x y z", "")}  # fmt: skip
    assert len(lengths) == 3


def test_a_run_trains_with_it(tmp_path, tokenizer, llama, capsys):
    args = SFTConfig(str(tmp_path), max_steps=1, use_cpu=True, save_strategy="no", system_prompt="Be kind.")
    rows = Dataset.from_list([{"messages": [USER, ANSWER]}])
    trainer = SFTTrainer(llama, args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0
    assert tokenizer.decode(trainer.eval_dataset[0]["input_ids"]) == BEFORE + REST
    assert "1 rows: the system prompt of the run" in capsys.readouterr().err


def test_check_and_preview_show_it(tmp_path, model_folder):
    file = tmp_path / "t.jsonl"
    file.write_text(json.dumps({"messages": [USER, ANSWER]}) + "\n")
    for verb, said in (("check", "The system prompt of the run"), ("preview", "Be kind.")):
        words = [verb, str(file), "--model", str(model_folder), "system_prompt=Be kind."]
        assert said in CliRunner().invoke(cli, words, catch_exceptions=False).output
