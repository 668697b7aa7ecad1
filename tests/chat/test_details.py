"""Answers of which some characters are trained and others are not, against masks that were written by hand."""

from __future__ import annotations

import json

import pytest

from sftcore import Message, Part, RowError
from sftcore.chat.render import Renderer
from sftcore.core.types import Example
from sftcore.data.tokenize import Tokenizer
from tests.conftest import make_tokenizer
from tests.plugins.formats.rendered import TEMPLATE, shown

USER = {"role": "user", "content": "go"}
ASKED = "<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\n"
STRIPPED = TEMPLATE.replace("{{ m.content or '' }}", "{{ (m.content or '') | trim }}")
PARTS = TEMPLATE.replace(
    "{{ m.content or '' }}",
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}",
)
SPLIT = TEMPLATE.replace(
    "{{ m.content or '' }}",
    "{% set c = m.content %}{% if '</think>' in c %}<think>\n{{ c.split('</think>')[0].split('<think>')[-1].strip() }}"
    "\n</think>\n\n{{ c.split('</think>')[1].lstrip() }}{% else %}{{ c }}{% endif %}",
)


def answered(row_or_answer, **more) -> str:
    """What follows the header of the assistant's turn, with what is trained between « and »."""
    found = shown({"messages": [USER, {"role": "assistant", **row_or_answer}]}, **more)
    assert found.startswith(ASKED)
    return found.removeprefix(ASKED).removesuffix("\n")


def detail(*stretches: tuple[int, int, bool]) -> list[dict]:
    return [{"begin_offset": first, "end_offset": last, "train": train} for first, last, train in stretches]


# the example of Axolotl's documentation
WELL = "I'm doing very well, thank you!"
MIDDLE = detail((0, 8, False), (9, 18, True), (19, 30, False))


@pytest.mark.parametrize("template", [TEMPLATE, STRIPPED, PARTS])
@pytest.mark.parametrize(
    ("stretches", "expected"),
    [
        (MIDDLE, "I'm doing« very well», thank you!«<|im_end|>»"),
        (MIDDLE[::-1], "I'm doing« very well», thank you!«<|im_end|>»"),
        (detail((9, 18, True)), "I'm doing« very well», thank you!«<|im_end|>»"),
        (json.dumps(MIDDLE), "I'm doing« very well», thank you!«<|im_end|>»"),
        ({"begin_offset": [9.0], "end_offset": [18.0], "train": [1]}, "I'm doing« very well», thank you!«<|im_end|>»"),
        (detail((0, 30, True)), "«I'm doing very well, thank you!<|im_end|>»"),
        (detail((0, 0, False), (1, 30, True)), "I«'m doing very well, thank you!<|im_end|>»"),
        ([], "«I'm doing very well, thank you!<|im_end|>»"),
    ],
)
def test_characters_are_trained_as_their_details_say(template, stretches, expected):
    assert answered({"content": WELL, "training_detail": stretches}, template=template) == expected


def test_details_are_read_in_other_shapes_and_by_their_other_name():
    answer = {"from": "gpt", "value": WELL, "train_detail": MIDDLE}
    row = {"conversations": [{"from": "human", "value": "go"}, answer]}
    assert shown(row, "sharegpt") == f"{ASKED}I'm doing« very well», thank you!«<|im_end|>»\n"


@pytest.mark.parametrize("asked", [{"assistant_only": True}, {}])
@pytest.mark.parametrize("template", [TEMPLATE, STRIPPED, PARTS])
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([("keep this ", {"train": True}), ("WRONG STEP", {"train": False})], "«keep this »WRONG STEP«<|im_end|>»"),
        ([("WRONG STEP ", {"train": False}), ("right", {})], "WRONG STEP «right<|im_end|>»"),
        ([("a", {}), (" b ", {"loss": False}), ("c", {"loss": True})], "«a» b «c<|im_end|>»"),
        ([("a ", {"masked": True}), ("b", {"masked": False})], "a «b<|im_end|>»"),
        ([("a ", {"weight": 0}), ("b", {"weight": 1})], "a «b<|im_end|>»"),
        ([("a ", {"label": False}), ("b", {"label": True})], "a «b<|im_end|>»"),
        ([("a ", {"train": True}), ("b", {"train": True})], "«a b<|im_end|>»"),
        ([("same ", {"train": False}), ("same ", {"train": True}), ("same", {"train": False})],
         "same «same »same«<|im_end|>»"),
    ],
)  # fmt: skip
def test_parts_are_trained_each_as_it_says(template, parts, expected, asked):
    content = [{"type": "text", "text": text, **marks} for text, marks in parts]
    assert answered({"content": content}, template=template, asked=asked) == expected


def test_segments_inside_a_turn_are_trained_as_their_labels_say():
    content = [{"label": False, "text": "WRONG "}, {"label": True, "text": "right"}]
    assert answered({"content": content}) == answered({"segments": content}) == "WRONG «right<|im_end|>»"


def test_stretches_are_found_where_a_template_moves_or_trims_what_is_said():
    said = "<think>hm, wrong</think>\n\nyes and no \n"
    wrong, no = said.index(", wrong"), said.index(" and no")
    stretches = detail((0, wrong - 1, True), (wrong, wrong + 6, False), (wrong + 7, no - 1, True), (no, no + 6, False))
    expected = "«<think>\nhm», wrong«\n</think>\n\nyes» and no"
    found = answered({"content": said, "training_detail": stretches}, template=SPLIT)
    assert found.startswith(expected)
    assert found.endswith("«<|im_end|>»")
    spaced = {"content": "  a b ", "training_detail": detail((0, 2, False), (3, 5, True))}
    assert answered(spaced, template=STRIPPED) == "a« b<|im_end|>»"


def test_calls_and_reasoning_count_as_the_turn_does():
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    answer = {"content": "no yes", "training_detail": detail((0, 2, False), (3, 5, True)), "tool_calls": [call]}
    printed = '<tool_call>{"name": "f", "arguments": {}}</tool_call><|im_end|>'
    assert answered({**answer, "reasoning": "hm"}) == f"«<think>hm</think>»no «yes{printed}»"
    thought = [{"type": "thinking", "thinking": "hm", "train": False}, {"type": "text", "text": "yes"}]
    assert answered({"content": thought}) == "«<think>»hm«</think>yes<|im_end|>»"
    only = [{"type": "thinking", "thinking": "hm", "train": True}, {"type": "text", "text": "no", "train": False}]
    assert answered({"content": only}) == "«<think>hm</think>»no«<|im_end|>»"


def test_a_turn_that_is_not_trained_stays_so_and_others_are_trained_whole():
    well = {"role": "assistant", "content": WELL, "training_detail": MIDDLE}
    turns = [USER, well, USER, {"role": "assistant", "content": "ok"}]
    second = f"{ASKED}«ok<|im_end|>»\n"
    assert shown({"messages": turns}) == f"{ASKED}I'm doing« very well», thank you!«<|im_end|>»\n{second}"
    untrained = f"{ASKED}{WELL}<|im_end|>\n{second}"
    assert shown({"messages": turns}, trained_turns="last") == untrained
    assert shown({"messages": [USER, {**well, "train": False}, *turns[2:]]}) == untrained


def test_a_completion_is_trained_as_its_details_say():
    row = {"prompt": [USER], "completion": [{"role": "assistant", "content": WELL, "training_detail": MIDDLE}]}
    expected = f"{ASKED}I'm doing« very well», thank you!«<|im_end|>»\n"
    assert shown(row, "prompt-completion", asked={}) == expected


def test_weights_of_parts_reach_the_tokens():
    tokenizer = make_tokenizer(template=TEMPLATE)
    parts = [Part("text", "one ", {"weight": 0.5}), Part("text", "two ", {"train": False}), Part("text", "three")]
    rendered = Renderer(tokenizer).render(Example(messages=[Message("user", "go"), Message("assistant", parts)]))
    words = {rendered.text[one.start : one.end]: one.weight for one in rendered.spans}
    assert words == {"one ": 0.5, "three<|im_end|>": 1.0}


def test_tokens_are_masked_as_the_details_say():
    tokenizer = make_tokenizer(template=TEMPLATE)
    answer = Message("assistant", "hello there you", extra={"training_detail": detail((6, 10, True))})
    rendered = Renderer(tokenizer).render(Example(messages=[Message("user", "hello"), answer]))
    columns, _ = Tokenizer(tokenizer).columns([rendered])
    row = columns.row(0)
    tokens = zip(row.input_ids, row.labels, strict=True)
    text = "".join(tokenizer.decode([token]) if label >= 0 else "·" for token, label in tokens)
    assert text.strip("·\n").replace(" ", "") == "there" + "·" * len(tokenizer(" you")["input_ids"]) + "<|im_end|>"


def tool(number: str, train: bool) -> dict:
    return {"type": "tool_use", "id": number, "name": "f", "input": {}, "train": train}


HALF = [{"type": "text", "text": "a", "train": False}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (detail((0, 31, True)), "goes to character 31, and the last of its content is 30"),
        (detail((0, 9, False), (9, 30, True)), "two stretches hold character 9"),
        ([{"begin_offset": 0, "train": True}], "cannot be read"),
        (detail((-1, 2, True)), "cannot be read"),
        (detail((0, 2, "no")), "cannot be read"),
        (detail((3, 2, True)), "cannot be read"),
        (detail((float("nan"), 2, True)), "cannot be read"),
        ([{"begin_offset": 0, "end_offset": 2, "train": True, "weight": "much"}], "cannot be read"),
        ([{"of": "reasoning"}], "cannot be read"),
        ("all", "not valid JSON"),
        ([3], "is not a list of stretches"),
        ({"content": WELL, "training_detail": MIDDLE, "train_detail": MIDDLE[:1]}, "which differ"),
        ({"content": [*HALF, tool("1", True), tool("2", False)]}, 'the one of type "tool_use"'),
        ({"content": HALF, "training_detail": MIDDLE}, "marks on its parts and details"),
    ],
)
def test_details_that_cannot_be_read_are_refused_by_name(answer, said):
    with pytest.raises(RowError, match=said):
        answered(answer if isinstance(answer, dict) else {"content": WELL, "training_detail": answer})


def test_words_of_a_user_are_not_trained():
    user = {"role": "user", "content": "abc", "training_detail": detail((0, 1, True))}
    with pytest.raises(RowError, match=r"message 0 \(user\) is marked for training"):
        shown({"messages": [user, {"role": "assistant", "content": "ok"}]})
    user["training_detail"] = detail((0, 1, False))
    assert "«ok<|im_end|>»" in shown({"messages": [user, {"role": "assistant", "content": "ok"}]})
