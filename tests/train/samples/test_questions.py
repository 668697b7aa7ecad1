"""What a model is asked: prompts in each of their forms, and rows of an evaluation set without their answers."""

from __future__ import annotations

import attrs
import pytest
from datasets import Dataset, IterableDataset

from sftcore.core.errors import SFTCoreError
from sftcore.data.mixing.mixture import DataSource, Mixture
from sftcore.train.samples.prompts import questions_of
from tests.train.samples.test_samples import FEW, ROWS, trainer_of

OPENED = "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The preparation of a run, whose sets a test gives itself."""
    return trainer_of(tmp_path_factory.mktemp("run"), sample_prompts=["hi"]).data


def with_settings(data, **settings):
    plan = attrs.evolve(data.setup.plan, settings={**data.setup.plan.settings, **settings})
    return attrs.evolve(data, setup=attrs.evolve(data.setup, plan=plan))


def spelled(data, wanted, train=ROWS, evaluated=FEW, **how):
    """What the model reads of each question."""
    return [data.tokenizer.decode(one.row["input_ids"]) for one in questions_of(wanted, data, train, evaluated, **how)]


def turn(role, content):
    return {"role": role, "content": content}


def chatml(*turns):
    return "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns) + OPENED


LONG = [turn("system", "be brief"), turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
WHOLE = chatml(*[(one["role"], one["content"]) for one in LONG])


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"messages": [*LONG, turn("assistant", "d")]}, WHOLE),
        ({"messages": LONG}, WHOLE),
        ({"prompt": [turn("user", "a")], "completion": [turn("assistant", "b")]}, chatml(("user", "a"))),
        ({"prompt": "2 + 2 = ", "completion": "4"}, "2 + 2 = "),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, chatml(("user", "a"))),
        ({"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, [5, 6]),
        ({"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, 6, -100, -100, 9, 10]}, [5, 6, 7, 8]),
    ],
    ids=["messages", "unanswered", "turns", "texts", "sharegpt", "tokens", "tokens of two turns"],
)
@pytest.mark.parametrize("kind", ["map", "stream"])
def test_rows_are_asked_without_their_answers(data, row, asked, kind):
    every = Dataset.from_list([row] * 3)
    evaluated = every if kind == "map" else IterableDataset.from_generator(lambda: iter([row] * 3))
    formats = dict(data.formats)
    found = questions_of(2, data, every, evaluated)
    assert [one.name for one in found] == ["eval row 0", "eval row 1"]
    if isinstance(asked, list):
        assert found[0].row["input_ids"] == asked
    else:
        assert found[0].row["input_ids"] == data.tokenizer(asked)["input_ids"]
    assert data.formats == formats


@pytest.mark.parametrize(
    ("prompt", "asked", "shown"),
    [
        ("hi", chatml(("user", "hi")), "hi"),
        ([turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
         chatml(("user", "a"), ("assistant", "b"), ("user", "c")), "user: a\nassistant: b\nuser: c"),
        ([turn("system", "s"), turn("user", "a")], chatml(("system", "s"), ("user", "a")), "a"),
        ({"messages": [turn("user", "a"), turn("assistant", "b")], "id": 3}, chatml(("user", "a")), "a"),
        ({"prompt": [turn("user", "a")]}, chatml(("user", "a")), "a"),
        ({"prompt": "a text"}, "a text", "a text"),
        ({"text": "a text"}, "a text", "a text"),
    ],
)  # fmt: skip
def test_prompts_may_be_texts_conversations_and_rows(data, prompt, asked, shown):
    (found,) = questions_of([prompt], data, ROWS, FEW)
    assert data.tokenizer.decode(found.row["input_ids"]) == asked
    assert (found.asked, found.name) == (shown, "")


def test_a_row_in_the_shape_of_the_training_rows_is_read_by_their_format(data):
    rows = Dataset.from_list([{"instruction": "say", "input": "", "output": "it"}] * 3)
    (asked,) = spelled(data, [{"instruction": "name one", "input": "", "output": "ruby"}], train=rows)
    assert "name one" in asked
    assert "ruby" not in asked
    assert asked.endswith(OPENED)


def test_the_system_prompt_of_the_run_is_put_before_what_is_asked(data):
    kind = with_settings(data, system_prompt="be kind")
    assert spelled(kind, ["hi"]) == [chatml(("system", "be kind"), ("user", "hi"))]
    assert spelled(kind, 1) == [chatml(("system", "be kind"), ("user", "say 0"))]


def test_where_rows_are_texts_a_prompt_is_the_beginning_of_one(data):
    rows = Dataset.from_list([{"text": f"one two {i}"} for i in range(4)])
    assert spelled(data, ["one"], train=rows) == ["one"]
    marked = with_settings(data, response_marker="A: ")
    rows = Dataset.from_list([{"text": "Q: x A: y Q: z A: w"}])
    assert spelled(marked, 1, train=rows, evaluated=rows) == ["Q: x A: y Q: z A: "]


def test_rows_that_go_to_the_collator_as_they_are_are_asked_by_their_tokens(data):
    rows = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}])
    (found,) = questions_of(1, data, rows, rows, prepared=False)
    assert found.row["input_ids"] == [5, 6]
    assert spelled(data, ["hi"], train=rows, prepared=False) == [chatml(("user", "hi"))]
    with pytest.raises(SFTCoreError, match="eval_dataset: sample_prompts asks rows that are prepared here"):
        questions_of(1, data, ROWS, FEW, prepared=False)


def test_rows_that_are_too_long_to_be_asked_are_passed_over(data):
    long = [turn("user", "say " * 1100), turn("assistant", "x")]
    rows = Dataset.from_list([{"messages": long}, *ROWS.to_list()])
    assert [one.name for one in questions_of(2, data, ROWS, rows)] == ["eval row 1", "eval row 2"]
    with pytest.raises(SFTCoreError, match=r"eval_dataset: .*none of them can be asked within max_length"):
        questions_of(2, data, ROWS, rows.select([0]))


def test_rows_of_several_sources_are_asked_in_their_order(data):
    texts = Dataset.from_list([{"prompt": f"{n} + 1 = ", "completion": "?"} for n in range(2)])
    several = [texts, FEW]
    found = questions_of(4, data, several, Mixture([DataSource(texts, "sums"), DataSource(FEW)]))
    assert [(one.name, one.asked) for one in found] == [
        ("eval sums row 0", "0 + 1 = "), ("eval sums row 1", "1 + 1 = "),
        ("eval 1 row 0", "say 0"), ("eval 1 row 1", "say 1"),
    ]  # fmt: skip
    assert spelled(data, ["one"], train=several) == ["one"]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("say " * 1100, r"sample_prompts\[1\]: the prompt has .* tokens, .* \(max_length\)"),
        ([turn("robot", "x")], r"sample_prompts\[1\]: .*robot"),
        ([{"content": "x"}], r"sample_prompts\[1\]: "),
        ([turn("assistant", "x")], r"sample_prompts\[1\]: nothing stands before its answer"),
        ({"messages": [turn("user", "x")], "images": ["x.png"]}, r"sample_prompts\[1\]: .*images"),
        ({"question": "x"}, r"sample_prompts\[1\]: .*\"messages\" is missing\. A prompt is a text"),
        ({"messages": 5}, r"sample_prompts\[1\]: "),
    ],
)
def test_what_cannot_be_asked_is_refused_by_its_number(data, prompt, said):
    with pytest.raises(SFTCoreError, match=said):
        questions_of(["hi", prompt], data, ROWS, FEW)


def test_texts_without_a_question_are_refused_as_rows_to_ask(data):
    rows = Dataset.from_list([{"text": "one two"}] * 3)
    with pytest.raises(SFTCoreError, match="eval_dataset row 0: it is a text, of which no question can be told"):
        questions_of(1, data, rows, rows)
