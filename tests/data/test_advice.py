"""Notes that save a run: what is trained on, or cut away, is as it was asked for and perhaps not as it was meant."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

from sftcore import SFTConfig, SFTTrainer
from sftcore.chat.render import EVERY_TURN, WITHOUT_TEMPLATE
from sftcore.data.ledger import Ledger
from tests import commands
from tests.conftest import CHATML_MARKED, make_llama, make_tokenizer

USER, ANSWER = {"role": "user", "content": "say hello"}, {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "a word"}
PAIR = {"prompt": "say hello", "completion": " hello"}


def notes(tmp_path, row: dict, *, tokenizer=None, **settings) -> dict[str, int]:
    tokenizer = tokenizer or make_tokenizer()
    args = SFTConfig(str(tmp_path), use_cpu=True, report_to="none", **settings)
    rows = Dataset.from_list([row] * 3)
    trainer = SFTTrainer(make_llama(tokenizer), args, train_dataset=rows, processing_class=tokenizer)
    return dict(trainer.data.ledgers[0].notes)


def test_texts_that_a_chat_model_would_be_asked_otherwise_are_said(tmp_path):
    assert notes(tmp_path, PAIR) == {WITHOUT_TEMPLATE: 3}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "completion": [ANSWER]},
        {"text": "say hello"},
        {"prompt": "<|im_start|>user\nsay hello<|im_end|>\n<|im_start|>assistant\n", "completion": "hello"},
    ],
)
def test_messages_texts_and_prompts_with_the_templates_tokens_are_as_they_were_meant(tmp_path, row):
    assert notes(tmp_path, row) == {}


def test_a_model_without_a_chat_template_is_asked_with_texts(tmp_path):
    assert notes(tmp_path, PAIR, tokenizer=make_tokenizer(template=None)) == {}


@pytest.mark.parametrize("turns", [[USER, ANSWER], [SYSTEM, USER, ANSWER, USER, ANSWER]])
def test_turns_of_others_that_are_trained_on_are_said(tmp_path, turns):
    assert notes(tmp_path, {"messages": turns}) == {EVERY_TURN: 3}


def test_answers_alone_need_no_note(tmp_path):
    row = {"messages": [USER, ANSWER]}
    assert notes(tmp_path, row, assistant_only_loss=True) == {}
    assert notes(tmp_path, row, assistant_only_loss=True, tokenizer=make_tokenizer(template=CHATML_MARKED)) == {}
    assert notes(tmp_path, {"messages": [USER, {**ANSWER, "train": True}]}) == {}
    assert notes(tmp_path, {"messages": [USER]}) == {}
    assert notes(tmp_path, {"prompt": [USER], "completion": [ANSWER]}, completion_only_loss=False) == {}


@pytest.mark.parametrize(
    ("cut", "said"), [(0, None), (3, ""), (4, "; that is 40% of the rows, so raise max_length or split them")]
)
def test_a_third_of_the_rows_cut_is_said(cut, said):
    lines = Ledger("train", "text", 10, 10, cut, 20, 20 - cut, cut, 0, 5).lines()
    assert lines[1:] == ([] if said is None else [f"train: {cut} rows cut to length, {cut} tokens removed{said}"])


@pytest.mark.slow
def test_plan_and_check_say_each_note_once(tmp_path, model_folder, write):
    pairs = write("pairs.jsonl", (json.dumps(PAIR) + "\n") * 30)
    chats = write("chats.jsonl", (json.dumps({"messages": [USER, ANSWER]}) + "\n") * 30)
    for data, note in ((pairs, WITHOUT_TEMPLATE), (chats, EVERY_TURN)):
        words = ["--model", str(model_folder), "--data", str(data)]
        planned = commands.sftcore("train", *words, "--dry-run", "use_cpu=true", f"output_dir={tmp_path / 'out'}")
        assert planned.stderr.count(note) == 1, planned.stderr
        checked = commands.sftcore("check", *words, "max_length=20")
        assert checked.stdout.count(note[1:]) == 1, checked.stdout
    assert "30 of them cut (100%: raise max_length or split them)" in checked.stdout
