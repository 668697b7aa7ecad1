"""Answers found by markers in rows that are texts: which tokens are trained, and what is said of rows without them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from datasets import Dataset

from sftcore import ConflictError, DataError, RecipeError, SFTConfig, SFTTrainer
from sftcore.chat.markers.answers import LAST_ALONE, WITHOUT_MARKER
from sftcore.cli import cli
from tests.conftest import make_tokenizer
from tests.data.test_pipeline import preparation

CHAT = {"response_marker": "<|im_start|>assistant\n", "instruction_marker": "<|im_start|>user\n"}
WORDS = {"response_marker": "### Response:\n", "instruction_marker": "### Instruction:\n"}


def trained(tokenizer, text, **fields):
    """The supervised text of each stretch of labels, and the preparation."""
    data = preparation(tokenizer, **fields)
    (row,) = data.prepare(Dataset.from_list([{"text": text}]), "train_dataset")
    stretches, before = [[]], -100
    for label in row["labels"]:
        if label >= 0:
            stretches = [*stretches, []] if before < 0 and stretches[-1] else stretches
            stretches[-1].append(label)
        before = label
    return [tokenizer.decode(one) for one in stretches if one], data


TEXTS = [
    ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n", CHAT, ["yes<|im_end|>\n"]),
    ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nso<|im_end|>\n"
     "<|im_start|>assistant\nno", CHAT, ["yes<|im_end|>\n", "no<|im_end|>"]),
    ("### Instruction:\nsay hello\n\n### Response:\nhello world", WORDS, ["hello world<|im_end|>"]),
    ("### Response:\nhello### Response:\nworld### Instruction:\nx### Response:\ny", WORDS,
     ["hello", "world", "y<|im_end|>"]),
    ("### Instruction:\nsay\n### Response:\nhello", {"response_marker": "### Response:"}, ["\nhello<|im_end|>"]),
    ("a### Response:b", {"response_marker": "### Response:"}, ["b<|im_end|>"]),
]  # fmt: skip


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(("text", "markers", "wanted"), TEXTS)
def test_answers_alone_are_trained_wherever_tokens_divide(text, markers, wanted, bos):
    assert trained(make_tokenizer(bos=bos), text, **markers)[0] == wanted


def test_without_a_marker_of_questions_the_last_answer_is_trained_and_it_is_said(tokenizer):
    text = "Q: hi A: yes Q: so A: no"
    found, data = trained(tokenizer, text, response_marker="A:")
    assert found == [" no<|im_end|>"]
    assert data.ledgers[0].notes == {LAST_ALONE: 1}
    assert trained(tokenizer, text, response_marker="A:", instruction_marker="Q:")[0] == [" yes ", " no<|im_end|>"]


def test_rows_without_the_marker_are_counted_and_named(tokenizer):
    data = preparation(tokenizer, **WORDS)
    rows = [{"text": "hello"}, {"text": "### Response:\nyes"}, {"text": "### Response"}]
    assert len(data.prepare(Dataset.from_list(rows), "train_dataset")) == 1
    assert data.ledgers[0].dropped_rows == {WITHOUT_MARKER: [0, 2]}
    with pytest.raises(DataError, match=r"no row is left: .*without response_marker"):
        preparation(tokenizer, **WORDS).prepare(Dataset.from_list(rows[:1]), "train_dataset")


def test_streams_packing_and_functions_do_the_same(tokenizer):
    rows = Dataset.from_list([{"text": "### Instruction:\nhi### Response:\nyes"}, {"text": "none"}])
    (plain,) = preparation(tokenizer, **WORDS).prepare(rows, "train_dataset")
    (streamed,) = preparation(tokenizer, **WORDS).prepare(rows.to_iterable_dataset(), "train_dataset")
    assert streamed["labels"] == plain["labels"]
    (packed,) = preparation(tokenizer, max_length=64, packing=True, **WORDS).prepare(rows, "train_dataset")
    assert packed["labels"] == plain["labels"]
    made = preparation(tokenizer, formatting_func=lambda row: row["text"], **WORDS).prepare(rows, "train_dataset")
    assert made[0]["labels"] == plain["labels"]


def test_the_cache_knows_the_markers(tokenizer):
    text = "Q: hi A: yes Q: so A: no"
    both = {"response_marker": "A:", "instruction_marker": "Q:"}
    settings = ({"response_marker": "A:"}, {"response_marker": "Q:"}, both)
    found = [trained(tokenizer, text, **fields)[0] for fields in settings]
    assert len({str(one) for one in found}) == 3


@pytest.mark.parametrize(
    ("row", "error", "said"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, DataError, "these rows hold messages"),
        ({"prompt": "a", "completion": "b"}, DataError, "these rows hold a prompt and a completion"),
        ({"input_ids": [5, 6, 7]}, ConflictError, "tokens already"),
    ],
)
def test_rows_whose_answers_are_known_are_refused(tokenizer, row, error, said):
    with pytest.raises(error, match=said):
        preparation(tokenizer, **WORDS).prepare(Dataset.from_list([row]), "train_dataset")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"instruction_marker": "Q:"}, "response_marker, which says where they begin, is missing"),
        ({"response_marker": "A:", "instruction_marker": "A:"}, "are the same"),
        ({"response_marker": " "}, "holds no words"),
        ({"response_marker": ["A:"]}, "response_marker takes str"),
    ],
)
def test_markers_that_say_nothing_are_refused(tmp_path, fields, said):
    with pytest.raises(RecipeError, match=said):
        SFTConfig(str(tmp_path), **fields)


def test_a_run_trains_on_the_answers(tmp_path, tokenizer, llama):
    args = SFTConfig(str(tmp_path), max_steps=1, use_cpu=True, save_strategy="no", logging_steps=1, **WORDS)
    rows = Dataset.from_list([{"text": "### Instruction:\nsay hello\n### Response:\nhello"}])
    trainer = SFTTrainer(llama, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.log_history[0]["num_supervised_tokens"] == len(tokenizer("hello<|im_end|>")["input_ids"])


def test_check_and_preview_show_it(tmp_path, model_folder):
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("Q: hi A: yes", "Q: hi")))
    for verb, said in (("check", "Without response_marker"), ("preview", "A:« yes<|im_end|>»")):
        words = [verb, str(file), "--model", str(model_folder), 'response_marker="A:"']
        output = CliRunner().invoke(cli, words, catch_exceptions=False).output
        assert said.lower() in output.lower()
