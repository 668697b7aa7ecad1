"""Rows of an evaluation set that are trained on, word for word or nearly, are reported with the training row."""

from __future__ import annotations

import json
import random

import pytest
from click.testing import CliRunner

from sftcore.cli import cli

WORDS = [f"word{number}" for number in range(400)]
RANDOM = random.Random(7)


def sentence(count=40):
    return " ".join(RANDOM.choice(WORDS) for _ in range(count))


def found(tmp_path, train, evaluation, kind):
    """The evaluation rows of one finding, with the training row that each is like."""
    for name, rows in (("train", train), ("eval", evaluation)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = f"{{train: {tmp_path / 'train.jsonl'}, eval: {tmp_path / 'eval.jsonl'}}}"
    result = CliRunner().invoke(cli, ["check", "--json", f"data={data}"], catch_exceptions=False)
    report = json.loads(result.stdout)
    assert [one["name"] for one in report["sets"]] == ["train", "eval"]
    (one,) = [one for one in report["sets"] if one["name"] == "eval"]
    rows = [place for finding in one["findings"] if finding["id"] == kind for place in finding["rows"]]
    return {place["row"]: place["detail"] for place in rows}


def changed(text, places, word="altogether"):
    words = text.split()
    for place in places:
        words[place] = word
    return " ".join(words)


def text(value):
    return {"text": value}


def test_a_row_with_a_word_or_two_changed_is_near_and_one_with_many_is_not(tmp_path):
    train = [text(sentence()) for _ in range(30)]
    first, second, third = (row["text"] for row in train[3:6])
    evaluation = [
        text(sentence()),
        text(changed(first, [20])),
        text(second.upper().replace(" ", "  ") + "!"),
        text(changed(third, range(0, 40, 4))),
    ]
    near = found(tmp_path, train, evaluation, "nearly-in-training")
    assert set(near) == {1, 2}
    assert near[1].endswith("as training row 3")
    assert near[2].endswith("as training row 4")


def test_a_row_that_is_the_same_is_not_said_to_be_near_too(tmp_path):
    train = [text(sentence()) for _ in range(12)]
    assert found(tmp_path, train, [train[5]], "nearly-in-training") == {}
    assert found(tmp_path, train, [train[5]], "also-in-training") == {0: "as training row 5"}


def test_the_answer_counts_as_well_as_the_question(tmp_path):
    question, answer = sentence(20), sentence(20)
    train = [{"prompt": question, "completion": answer}]
    other = [{"prompt": question, "completion": sentence(20)}]
    assert found(tmp_path, train, other, "nearly-in-training") == {}
    near = [{"prompt": question, "completion": changed(answer, [19])}]
    assert set(found(tmp_path, train, near, "nearly-in-training")) == {0}


def chat(system, question, answer):
    roles = ("system", system), ("user", question), ("assistant", answer)
    return {"messages": [{"role": role, "content": content} for role, content in roles if content]}


@pytest.mark.parametrize("in_system", [True, False])
def test_what_all_rows_have_in_common_makes_none_of_them_near(tmp_path, in_system):
    shared = sentence(300)

    def row():
        question = sentence(12)
        return chat(shared if in_system else "", question if in_system else f"{shared} {question}", sentence(12))

    assert found(tmp_path, [row() for _ in range(40)], [row() for _ in range(15)], "nearly-in-training") == {}


def test_scripts_without_spaces_are_compared_by_character(tmp_path):
    line = "人工智能正在改变我们的生活方式和工作方式并且带来许多新的机会与挑战"
    train = [text(line), text("今天天气很好我们一起去公园散步然后回家吃饭看书听音乐")]
    assert found(tmp_path, train, [text(line.replace("挑战", "风险"))], "nearly-in-training") == {
        0: "88% as training row 0"
    }


def test_short_rows_of_other_words_are_not_near(tmp_path):
    assert found(tmp_path, [text("yes"), text("no"), text("")], [text("maybe"), text("?")], "nearly-in-training") == {}
