"""Reasoning is trained with, or the row is refused: templates that cut it out of answers, and what keeps it."""

from __future__ import annotations

import pytest

from sftcore import Message, RowError
from sftcore.core.types import Selection
from sftcore.rows import split_turns
from tests.chat import trl_templates as trl
from tests.conftest import make_tokenizer
from tests.data.test_pipeline import preparation
from tests.plugins.formats.rendered import shown

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
TAIL = (
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NEVER = HEAD + "{{ m.content.split('</think>')[-1].strip() }}" + TAIL
"""In the manner of DeepSeek-R1's distilled models."""
LAST = (
    HEAD + "{% set said = m.content.split('</think>')[-1].strip() %}{% set thought = m.reasoning_content or "
    "(m.content.split('</think>')[0].split('<think>')[-1].strip() if '</think>' in m.content else '') %}"
    "{% if thought and (keep_thinking or loop.last) %}<think>{{ thought }}</think>{% endif %}{{ said }}" + TAIL
)
"""In the manner of Qwen3, with a switch as some of its successors have."""

ASK = {"role": "user", "content": "q"}
TAGS = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nok"}
KEY = {"role": "assistant", "content": "ok", "reasoning_content": "hm"}


def prepared(row: dict, template: str, settings: dict | None = None, **options):
    """The notes of the row in a run."""
    data = preparation(
        make_tokenizer(template=template), chosen=[Selection("format", "chat", options)], **settings or {}
    )
    found = data.pipeline(list(row), "train").inspect([row], [0])
    for one in found:
        if one.error is not None:
            raise one.error
    return found[0].notes


@pytest.mark.parametrize("answer", [TAGS, KEY])
@pytest.mark.parametrize("settings", [{"assistant_only_loss": True}, {}])
def test_a_last_answer_without_its_reasoning_is_refused(answer, settings):
    with pytest.raises(RowError) as caught:
        prepared({"messages": [ASK, answer]}, NEVER, settings)
    assert caught.value.what == "the chat template cuts the reasoning out of message 1, which is trained."
    assert caught.value.fix == "To train with it, use a template that prints it, or take it out of the rows."
    assert str(caught.value).startswith("train row 0: ")
    prepared(
        {"messages": [ASK, {**answer, "train": False}, ASK, {"role": "assistant", "content": "x"}]}, NEVER, settings
    )


@pytest.mark.parametrize("answer", [TAGS, KEY])
def test_an_earlier_answer_without_its_reasoning_is_refused_with_what_keeps_it(answer):
    row = {"messages": [ASK, answer, ASK, answer]}
    with pytest.raises(RowError, match="out of message 1, which is trained") as caught:
        prepared(row, LAST, {"assistant_only_loss": True})
    assert 'give the rows chat_template_kwargs: {"keep_thinking": true}' in caught.value.fix
    assert "format: {chat: {split_turns: true}}" in caught.value.fix
    # both ways are as good as they are said to be
    assert prepared({**row, "chat_template_kwargs": {"keep_thinking": True}}, LAST) != ()
    prepared(row, LAST, {"assistant_only_loss": True}, split_turns=True)
    assert prepared(row, LAST, trained_turns="last") == ("reasoning of earlier turns left out by the chat template",)


@pytest.mark.parametrize("answer", [TAGS, KEY])
def test_each_answer_is_a_row_of_its_own_with_what_was_said_before_it(answer):
    row = {"messages": [ASK, answer, {"role": "user", "content": "r"}, {**answer, "weight": 1.0}]}
    asked, answered = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "«<think>hm</think>ok<|im_end|>»\n"
    again = "ok<|im_end|>\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"
    for asked_of_all in ({}, {"assistant_only": True}):
        found = shown(row, template=LAST, split_turns=True, asked=asked_of_all)
        assert found == f"{asked}{answered}\n---\n{asked}{again}{answered}"
    shared = {"conversations": [{"from": turn["role"], **turn} for turn in row["messages"]]}
    assert shown(shared, "sharegpt", template=LAST, split_turns=True, asked={}) == found


def test_turns_that_are_not_trained_make_no_row():
    def said(*marks: dict) -> list:
        turns = [Message("user", "q"), *(Message("assistant", "a", **mark) for mark in marks), Message("user", "r")]
        return [[(one.train, one.weight) for one in row if one.role == "assistant"] for row in split_turns(turns)]

    assert said({}, {"train": False}, {"weight": 0.5}) == [
        [(True, None)], [(False, None), (False, None), (True, 0.5)]
    ]  # fmt: skip
    assert said({"train": False}, {"weight": 0.0}) == []
    row = {"messages": [ASK, TAGS, ASK, TAGS]}
    assert len(shown(row, template=LAST, split_turns=True, trained_turns="first 1").split("---")) == 1


def test_a_prompts_own_reasoning_may_be_cut_and_a_completions_may_not():
    template = NEVER
    data = preparation(make_tokenizer(template=template))

    def outcome(prompt: list, completion: list):
        row = {"prompt": prompt, "completion": completion}
        return data.pipeline(list(row), "train").inspect([row], [0])[0].error

    plain = {"role": "assistant", "content": "ok"}
    assert outcome([ASK, TAGS, ASK], [plain]) is None
    assert "out of message 3" in outcome([ASK, TAGS, ASK], [TAGS]).what
    data = preparation(make_tokenizer(template=template), completion_only_loss=False)
    assert "out of message 1" in outcome([ASK, TAGS, ASK], [plain]).what


def test_an_empty_place_for_thoughts_is_no_reasoning():
    empty = {"role": "assistant", "content": "<think>\n\n</think>\n\nok"}
    assert prepared({"messages": [ASK, empty]}, NEVER, {"assistant_only_loss": True}) == ()


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "qwen3", "llama3", "gemma3"])
def test_templates_of_real_models_never_train_an_answer_without_its_reasoning(name):
    tokenizer = trl.tokenizer_of(name)
    data = preparation(tokenizer, assistant_only_loss=True)
    row = {"messages": [ASK, {**TAGS, "content": "<think>\nbecause\n</think>\n\nResult 42"}]}
    (one,) = data.pipeline(list(row), "train").inspect([row], [0])
    if one.error is None:
        said = tokenizer.decode([label for label in one.row.labels if label >= 0])
        assert "because" in said
    else:
        assert "cuts the reasoning out of message 1" in one.error.what
    assert (one.error is None) == (name in ("qwen3", "llama3", "gemma3"))
