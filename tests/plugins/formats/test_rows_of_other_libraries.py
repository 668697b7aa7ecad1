"""Rows as other libraries write them: roles, marks of turns that are not to be trained, tools, and calls."""

from __future__ import annotations

import json

import pytest

from sftcore import RowError
from tests.plugins.formats.test_formats import read


# --- Roles
@pytest.mark.parametrize(
    ("role", "likely"),
    [
        ("function", "tool"), ("ipython", "tool"), ("observation", "tool"), ("tool_response", "tool"),
        ("environment", "tool"), ("human", "user"), ("USER", "user"), ("System", "system"), ("Human", "user"),
        (" Assistant ", "assistant"), ("gpt", "assistant"), ("model", "assistant"), ("context", "ROLE"),
        ("alien", "ROLE"),
    ],
)  # fmt: skip
def test_the_advice_on_an_unknown_role_names_the_likely_one_and_never_guesses(role, likely):
    with pytest.raises(RowError) as caught:
        read("chat", {"messages": [{"role": "user", "content": "go"}, {"role": role, "content": "42"}]})
    mapped = json.dumps(role) if role != role.strip() else role
    assert f"Map it with format: {{chat: {{roles: {{{mapped}: {likely}}}}}}}" in caught.value.fix
    assert ("where ROLE is one of these" in caught.value.fix) == (likely == "ROLE")


# --- Tools
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"default": None}}}}
WRAPPED = {"type": "function", "function": TOOL}


@pytest.mark.parametrize(
    "given", [[TOOL], TOOL, [json.dumps(TOOL)], [WRAPPED], WRAPPED, {"type": "function", **TOOL}, [WRAPPED, TOOL]]
)
def test_schemas_of_tools_get_the_outer_mapping_and_keep_the_nulls_of_json(given):
    row = {"messages": [{"role": "user", "content": "a"}], "tools": json.dumps(given)}
    assert read("chat", row).tools == [WRAPPED] * (len(given) if isinstance(given, list) else 1)


def test_nulls_that_arrow_fills_in_are_still_left_out_of_tools():
    stripped = {**TOOL, "parameters": {"type": "object", "properties": {"x": {}}}}
    row = {"messages": [{"role": "user", "content": "a"}], "tools": [TOOL]}
    assert read("chat", row).tools == [{"type": "function", "function": stripped}]


def test_nulls_in_calls_and_arguments_of_the_template_that_are_json_are_kept():
    calls = json.dumps([{"name": "f", "arguments": {"x": None, "y": 1}}])
    row = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": calls}],
        "chat_template_kwargs": json.dumps({"date": None}),
    }
    example = read("chat", row)
    assert example.messages[1].tool_calls[0]["function"]["arguments"] == {"x": None, "y": 1}
    assert example.template_kwargs == {"date": None}


@pytest.mark.parametrize("arguments", ["", " \n", "null", None])
def test_calls_without_arguments_have_none(arguments):
    given = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    row = {"messages": [{"role": "assistant", "content": "", "tool_calls": [given]}]}
    assert read("chat", row).messages[0].tool_calls[0]["function"]["arguments"] == {}


# --- Calls of ShareGPT
def spoken(*turns: tuple[str, str], **keys) -> list:
    rows = [{"from": who, "value": value, **keys} for who, value in turns]
    return list(read("sharegpt", {"conversations": rows}).messages)


CALLS = [json.dumps({"name": name, "arguments": {"x": 1}}) for name in "fgh"]


def test_calls_that_follow_each_other_are_one_message_with_the_words_before_them():
    messages = spoken(
        ("human", "q"), ("gpt", "Let me look."), ("function_call", CALLS[0]),
        ("function_call", f"[{CALLS[1]}]"), ("observation", "1"), ("observation", "2"),
        ("function_call", CALLS[2]), ("observation", "3"), ("gpt", "so"), ("gpt", "and so"),
    )  # fmt: skip
    assert [(one.role, one.content, [call["function"]["name"] for call in one.tool_calls]) for one in messages] == [
        ("user", "q", []), ("assistant", "Let me look.", ["f", "g"]), ("tool", "1", []), ("tool", "2", []),
        ("assistant", "", ["h"]), ("tool", "3", []), ("assistant", "so", []), ("assistant", "and so", []),
    ]  # fmt: skip


def test_calls_that_are_trained_otherwise_than_the_words_before_them_stay_apart():
    rows = [
        {"from": "human", "value": "q"}, {"from": "gpt", "value": "Let me look.", "train": False},
        {"from": "function_call", "value": CALLS[0], "train": True},
    ]  # fmt: skip
    assert [one.train for one in read("sharegpt", {"conversations": rows}).messages] == [None, False, True]


# --- Masks of tokens
@pytest.mark.parametrize("name", ["loss_mask", "assistant_mask", "assistant_tokens_mask", "completion_masks"])
def test_a_mask_under_another_name_is_not_left_unread(name):
    with pytest.raises(RowError, match=f'the column "{name}" is not read.*assistant_masks: {name}'):
        read("tokenized", {"input_ids": [5, 6, 7], name: [0, 1, 1]})
    assert read("tokenized", {"input_ids": [5, 6], name: [0, 1]}, assistant_masks=name).tokens.labels == [-100, 6]
    assert read("tokenized", {"input_ids": [5, 6], "labels": [-100, 6], name: [0, 1]}).tokens.labels == [-100, 6]
