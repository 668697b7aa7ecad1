"""What a formatting function may return, and functions of a batch, which would format single letters."""

from __future__ import annotations

import pytest
from datasets import Dataset

from sftcore import Example, RowError
from sftcore.data.functions import by_function
from tests.conftest import make_tokenizer
from tests.data.test_pipeline import preparation

ROW = {"question": "say hello", "answer": "hello there"}
ASKED, ANSWERED = {"role": "user", "content": "say hello"}, {"role": "assistant", "content": "hello there"}
TALK = "<|im_start|>user\nsay hello<|im_end|>\n<|im_start|>assistant\n"


def trained(function, row: dict = ROW, **settings) -> list[tuple[str, str]]:
    """Each example's text, and what is supervised of it."""
    tokenizer = make_tokenizer()
    data = preparation(tokenizer, formatting_func=function, **settings)
    prepared = data.prepare(Dataset.from_list([row]), "train")
    return [
        (tokenizer.decode(one["input_ids"]), tokenizer.decode([label for label in one["labels"] if label >= 0]))
        for one in prepared
    ]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (("say", " hello"), [("say hello<|im_end|>", " hello<|im_end|>")]),
        (
            [("say", " hello"), ("a", " word")],
            [("say hello<|im_end|>", " hello<|im_end|>"), ("a word<|im_end|>", " word<|im_end|>")],
        ),
        ({"prompt": "say", "completion": " hello"}, [("say hello<|im_end|>", " hello<|im_end|>")]),
        (([ASKED], [ANSWERED]), [(f"{TALK}hello there<|im_end|>\n", "hello there<|im_end|>")]),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, [(f"{TALK}hello there<|im_end|>\n", "hello there<|im_end|>")]),
        ({"text": "say hello"}, [("say hello<|im_end|>", "say hello<|im_end|>")]),
        (["say", "hello", "word"], [(f"{word}<|im_end|>",) * 2 for word in ("say", "hello", "word")]),
        (Example(text="say"), [("say<|im_end|>", "say<|im_end|>")]),
    ],
)
def test_what_a_function_returns_is_read_as_what_it_is(returned, expected):
    assert trained(lambda row: returned) == expected


@pytest.mark.parametrize(
    "returned",
    [
        [ASKED, ANSWERED], (ASKED, ANSWERED), {"messages": [ASKED, ANSWERED]},
        [{"from": "human", "value": "say hello"}, {"from": "gpt", "value": "hello there"}], [[ASKED, ANSWERED]],
    ],
)  # fmt: skip
def test_messages_are_a_conversation(returned):
    expected = [(f"{TALK}hello there<|im_end|>\n", "hello there<|im_end|>")]
    assert trained(lambda row: returned, assistant_only_loss=True) == expected


def test_a_completion_of_a_function_may_be_trained_alone():
    pair = trained(lambda row: (row["question"], row["answer"]), completion_only_loss=True)
    assert pair == [("say hellohello there<|im_end|>", "hello there<|im_end|>")]


# --- Functions of a batch
def indexed(batch):
    return [f"Q: {batch['question'][i]}\nA: {batch['answer'][i]}" for i in range(len(batch["question"]))]


def zipped(batch):
    return [f"Q: {question}\nA: {answer}" for question, answer in zip(batch["question"], batch["answer"], strict=False)]


def of_columns(batch):
    return {"text": zipped(batch)}


def of_conversations(batch):
    return [[{"role": "user", "content": one}] for one in batch["question"]]


def of_pairs(batch):
    return list(zip(batch["question"], batch["answer"], strict=False))


@pytest.mark.parametrize("function", [indexed, zipped, of_columns, of_conversations, of_pairs])
@pytest.mark.parametrize(
    "row", [ROW, {"question": "hello there", "answer": "say"}, {"question": "Which?", "answer": "B"}]
)
def test_a_function_of_a_batch_is_refused_with_what_to_write(function, row):
    with pytest.raises(RowError) as caught:
        by_function(function)(row)
    assert "It is called with one row" in caught.value.fix
    assert "not with a batch of rows" in caught.value.fix


def test_a_function_that_fails_for_a_row_and_not_for_a_batch_is_one_of_a_batch():
    def function(batch):
        return [" ".join(words) for words in batch["words"]] if isinstance(batch["words"][0], list) else 1 / 0

    with pytest.raises(RowError, match=r"ZeroDivisionError.*called with one row"):
        by_function(function)({"words": ["a", "b"]})


def test_another_failure_is_the_functions_own():
    with pytest.raises(KeyError, match="absent"):
        by_function(lambda row: row["absent"])(ROW)


@pytest.mark.parametrize("row", [{"question": "ab", "answer": "c"}, {"question": "a", "answer": "b"}])
def test_a_function_of_a_row_may_return_as_many_texts_as_a_column_has_letters(row):
    assert len(by_function(lambda row: [row["question"], row["answer"]])(row)) == 2
    assert len(by_function(lambda row: [row["question"] + row["answer"]])(row)) == 1
    assert by_function(lambda row: [])(row) == []
