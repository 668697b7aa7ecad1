"""Rows as other libraries write them: roles, marks of turns that are not to be trained, tools, and calls."""

from __future__ import annotations

import json

import pytest

from sftcore import RowError
from sftcore.config.plugins.blocked import Blocklist
from sftcore.config.plugins.bound import bind
from sftcore.core.discovery import discover
from sftcore.core.registry import ActivePlugins
from sftcore.core.types import Selection
from sftcore.data.format import reader_for
from sftcore.data.unread import unread
from tests.plugins.formats.rendered import TEMPLATE, examples, shown, told
from tests.plugins.formats.test_formats import read


# --- Roles
@pytest.mark.parametrize(
    ("role", "known"),
    [
        ("function", "tool"), ("ipython", "tool"), ("observation", "tool"), ("tool_response", "tool"),
        ("environment", "tool"), ("human", "user"), ("USER", "user"), ("System", "system"), (" Human ", "user"),
        (" Assistant ", "assistant"), ("gpt", "assistant"), ("model", "assistant"), ("prompter", "user"),
        ("ai", "assistant"), ("Bot", "assistant"), ("chatbot", "assistant"), ("bing", "assistant"),
        ("bard", "assistant"), ("Tool\n", "tool"), ("DEVELOPER", "developer"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "shape", [("chat", "messages", "role", "content"), ("sharegpt", "conversations", "from", "value")]
)
def test_roles_are_known_by_the_names_of_other_data_in_any_case(role, known, shape):
    name, column, speaker, said = shape
    turns = [{speaker: "user", said: "go"}, {speaker: role, said: "42"}]
    assert [(one.role, one.content) for one in read(name, {column: turns}).messages] == [("user", "go"), (known, "42")]


@pytest.mark.parametrize("role", ["context", "alien", "asistant", "narrator", ""])
def test_a_role_that_is_unknown_is_refused_without_a_guess(role):
    with pytest.raises(RowError) as caught:
        read("chat", {"messages": [{"role": "user", "content": "go"}, {"role": role, "content": "42"}]})
    assert f'role "{role}" is not known' in caught.value.what
    assert (
        f"Map it with format: {{chat: {{roles: {{{role or json.dumps(role)}: ROLE}}}}}}, where ROLE" in caught.value.fix
    )
    assert "Did you mean" not in str(caught.value)


def test_roles_of_the_users_own_come_first_for_turns_of_either_shape():
    roles = {"gpt": "user", "me": "Assistant", "go": "function_call"}
    turns = [{"from": "gpt", "value": "a"}, {"role": "gpt", "content": "b"}, {"role": "me", "content": "c"}]
    messages = read("sharegpt", {"conversations": turns}, roles=roles).messages
    assert [(one.role, one.content) for one in messages] == [("user", "a"), ("user", "b"), ("assistant", "c")]
    turns = [{"from": "gpt", "value": "a"}, {"from": "go", "value": CALLS[0]}]
    called = read("sharegpt", {"conversations": turns}, roles=roles).messages[1]
    assert called.tool_calls[0]["function"] == {"name": "f", "arguments": {"x": 1}}


def test_roles_that_are_exchanged_are_exchanged_once():
    roles = {"human": "gpt", "gpt": "human"}
    turns = [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]
    messages = read("sharegpt", {"conversations": turns}, roles=roles).messages
    assert [one.role for one in messages] == ["user", "assistant"]


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


@pytest.mark.parametrize(
    "arguments", ["not json", "[1]", "3", '"a"', 3, True, [1], '{"x": NaN}', "{'x': 1}", '{"x": 1']
)
@pytest.mark.parametrize("outer", [True, False])
def test_arguments_that_are_no_json_object_are_refused(arguments, outer):
    function = {"name": "f", "arguments": arguments}
    call = {"type": "function", "function": function} if outer else function
    with pytest.raises(RowError, match=r"messages.0. .assistant.: tool_calls.0.: the arguments are not a JSON"):
        read("chat", {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]})


def test_arguments_that_name_a_thing_twice_are_refused_and_json_in_json_is_read():
    def called(arguments):
        function = {"name": "f", "arguments": arguments}
        row = {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": function}]}]}
        return read("chat", row).messages[0].tool_calls[0]["function"]["arguments"]

    with pytest.raises(RowError, match='the arguments name "x" twice'):
        called('{"x": 1, "x": 2}')
    assert called(json.dumps(json.dumps({"x": None}))) == {"x": None}


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
def test_a_mask_may_be_of_numbers_with_a_point():
    row = {"input_ids": [5, 6, 7], "loss_mask": [0.0, 1.0, 1.0], "attention_mask": [1.0, 1.0, 0.0]}
    assert read("tokenized", row).tokens.labels == [-100, 6]


@pytest.mark.parametrize("name", ["loss_mask", "assistant_mask", "assistant_tokens_mask", "completion_masks"])
def test_a_mask_under_another_name_is_read(name):
    assert read("tokenized", {"input_ids": [5, 6, 7], name: [0, 1, 1]}).tokens.labels == [-100, 6, 7]
    both = {"input_ids": [5, 6, 7], name: [0, 1, 1], "completion_mask": [1, 0, 1]}
    assert read("tokenized", both).tokens.labels == [-100, -100, 7]
    assert read("tokenized", {"input_ids": [5, 6], name: [0, 1]}, assistant_masks=name).tokens.labels == [-100, 6]
    assert read("tokenized", {"input_ids": [5, 6], "labels": [-100, 6], name: [0, 1]}).tokens.labels == [-100, 6]


# --- A system prompt in a column of its own
@pytest.mark.parametrize("column", ["system", "system_prompt"])
@pytest.mark.parametrize("prompt", [[{"role": "user", "content": "go"}], {"role": "user", "content": "go"}, "go"])
def test_a_system_prompt_beside_prompt_and_completion_comes_first(column, prompt):
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "ok"}], column: "Be brief."}
    example = read("prompt-completion", row)
    assert [(one.role, one.content) for one in example.prompt] == [("system", "Be brief."), ("user", "go")]
    for empty in ("", None):
        assert [one.role for one in read("prompt-completion", {**row, column: empty}).prompt] == ["user"]
    assert [one.role for one in read("prompt-completion", row, system="").prompt] == ["user"]


def test_a_system_prompt_that_stands_twice_is_read_once_and_another_one_is_refused():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "go"}]
    row = {"prompt": prompt, "completion": "ok", "system": "Be brief."}
    assert [one.role for one in read("prompt-completion", row).prompt] == ["system", "user"]
    with pytest.raises(RowError, match='the column "system" and the first message hold two system prompts'):
        read("prompt-completion", {**row, "system": "Be long."})


def test_a_system_prompt_beside_two_texts_is_named_as_unread():
    row = {"prompt": "go", "completion": "ok", "system": "Be brief."}
    bound = bind(Selection("format", "prompt-completion", {}), discover(), Blocklist())
    assert unread(reader_for(bound, tuple(row), "data", ActivePlugins([])), [row]) == {"system": "Be brief."}


def test_a_system_prompt_beside_images_and_their_prompt_comes_first():
    row = {"prompt": [{"role": "user", "content": "<image>go"}], "completion": [{"role": "assistant", "content": "ok"}]}
    example = read("vlm", {**row, "images": ["a.png"], "system": "Be brief."})
    assert [one.role for one in example.prompt] == ["system", "user"]


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_dialogue_has_one_system_prompt(column):
    turns = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "ok"}]
    row = {"conversation": turns, column: "SYSTEM: Be brief."}
    assert [one.content for one in read("dialogue", row).messages] == ["Be brief.", "go", "ok"]
    twice = {**row, "conversation": [{"role": "system", "content": "Be brief."}, *turns]}
    assert [one.content for one in read("dialogue", twice).messages] == ["Be brief.", "go", "ok"]
    with pytest.raises(RowError, match="two system prompts"):
        read("dialogue", {**twice, column: "Be long."})


# --- Turns that say who speaks in other ways
SPOKEN = [("user", "go"), ("assistant", "ok")]


@pytest.mark.parametrize(
    "turns",
    [
        [{"user": "go"}, {"assistant": "ok"}], [{"Human": "go"}, {"GPT": "ok"}], [["user", "go"], ["assistant", "ok"]],
        [("human", "go"), ("ai", "ok")],
        [{"role": "<|user|>", "content": "go"}, {"role": "assistant:", "content": "ok"}],
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("name", "column"), [("chat", "messages"), ("sharegpt", "conversations"), ("dialogue", "dialog")]
)
def test_turns_name_their_speaker_by_a_key_or_in_front(name, column, turns):
    assert [(one.role, one.content) for one in read(name, {column: turns}).messages] == SPOKEN


@pytest.mark.parametrize("role", ["tool-response", "Tool Response", "<|tool|>", "TOOL_RESULT:"])
def test_marks_around_a_role_and_between_its_words_do_not_matter(role):
    turns = [{"role": "user", "content": "go"}, {"role": role, "content": "42"}]
    assert [one.role for one in read("chat", {"messages": turns}).messages] == ["user", "tool"]


@pytest.mark.parametrize(
    "mark",
    [
        {"training": False}, {"do_train": 0}, {"supervised": False}, {"compute_loss": False}, {"calculate_loss": 0},
        {"is_masked": True}, {"mask_loss": True},
    ],
)  # fmt: skip
def test_more_names_for_turns_that_are_not_trained(mark):
    turns = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "bad", **mark}]
    assert [one.train for one in read("chat", {"messages": turns}).messages] == [None, False]


@pytest.mark.parametrize("call", [{"name": None, "arguments": "{}"}, {"arguments": {"x": 1}}, {"parameters": {}}])
def test_a_call_of_nothing_is_refused(call):
    with pytest.raises(RowError, match=r"tool_calls.0. does not name a function"):
        read("chat", {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]})


@pytest.mark.parametrize(
    "history",
    [
        [["a", "b"]], [("a", "b")], ["a", "b"], json.dumps([["a", "b"]]), [{"user": "a", "assistant": "b"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
    ],
)  # fmt: skip
def test_an_earlier_conversation_of_alpaca_is_read_in_every_shape(history):
    example = read("alpaca", {"instruction": "go", "input": "", "output": "ok", "history": history})
    assert [(one.role, one.content) for one in example.prompt] == [("user", "a"), ("assistant", "b"), ("user", "go")]


@pytest.mark.parametrize("nothing", [None, float("nan"), ""])
def test_what_pandas_fills_in_is_nothing(nothing):
    row = {"instruction": "go", "input": nothing, "output": "ok", "system": nothing, "history": nothing or None}
    assert [(one.role, one.content) for one in read("alpaca", row).prompt] == [("user", "go")]
    if nothing != "":
        with pytest.raises(RowError, match='the column "output" is null'):
            read("alpaca", {**row, "output": nothing})


@pytest.mark.parametrize("answer", ["completion", "response", "answer", "Output"])
def test_a_conversation_whose_answer_stands_in_another_column_is_not_trained_without_it(answer):
    asked = [{"role": "user", "content": "go"}]
    for name, column in (("chat", "messages"), ("sharegpt", "conversations")):
        with pytest.raises(RowError, match=f'the column "{answer}", not read, may hold the answer') as caught:
            read(name, {column: asked, answer: "ok"})
        assert f"format: {{prompt-completion: {{prompt: {column}, completion: {answer}}}}}" in caught.value.fix
        mapped = read("prompt-completion", {column: asked, answer: "ok"}, prompt=column, completion=answer)
        assert [(one.role, one.content) for one in (*mapped.prompt, *mapped.completion)] == SPOKEN
        whole = [*asked, {"role": "assistant", "content": "ok"}]
        assert len(read(name, {column: whole, answer: "ok"}).messages) == 2
        assert len(read(name, {column: asked, answer: None}).messages) == 1


# --- Rows that were packed before
@pytest.mark.parametrize(
    "layout",
    [
        {"seq_lengths": [1, 3]}, {"cu_seqlens": [0, 1, 4]}, {"cu_seq_lens_q": [1, 4]}, {"seq_idx": [0, 1, 1, 1]},
        {"document_ids": [7, 3, 3, 3]}, {"position_ids": [0, 0, 1, 2]}, {"attention_mask": [1, 2, 2, 2]},
        {"seq_lengths": [1, 3], "position_ids": [0, 0, 1, 2], "attention_mask": [1, 1, 1, 1]},
    ],
)  # fmt: skip
def test_documents_of_a_packed_row_are_kept_apart_however_it_says_where_they_are(layout):
    assert documents({"input_ids": [5, 6, 7, 8], **layout}) == [[5], [6, 7, 8]]


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"seq_lengths": [3, 1], "position_ids": [0, 1, 0, 1]}, "begins documents elsewhere"),
        ({"cu_seqlens": [0, 2, 9]}, "adds up to 9"), ({"seq_idx": [0, 1]}, '"seq_idx" has 2 entries'),
    ],
)  # fmt: skip
def test_documents_that_do_not_fit_the_row_are_refused(layout, said):
    with pytest.raises(RowError, match=said):
        documents({"input_ids": [5, 6, 7, 8], **layout})


def documents(row: dict) -> list[list[int]]:
    bound = bind(Selection("format", "tokenized", {}), discover(), Blocklist())
    found = reader_for(bound, tuple(row), "data", ActivePlugins([])).read(row, 7)
    return [list(one.tokens.input_ids) for one in found]


@pytest.mark.parametrize("values", [[0, 0, 1], [False, False, True], [0.0, 0.5, 1.0]])
@pytest.mark.parametrize("name", ["loss_weights", "response_mask", "train_mask", "prompt_mask", "shifted_labels"])
def test_numbers_for_each_token_that_may_say_what_counts_are_refused_where_nothing_else_does(name, values):
    row = {"input_ids": [5, 6, 7], name: values}
    with pytest.raises(RowError, match=rf'"{name}" has a number for each token.*{{completion_mask: {name}}}'):
        examples("tokenized", row)
    (labelled,) = examples("tokenized", {**row, "labels": [-100, 6, 7]})
    assert labelled.tokens.labels == [-100, 6, 7]
    if set(values) <= {0, 1}:
        assert examples("tokenized", row, completion_mask=name)[0].tokens.labels == [-100, -100, 7]
    else:
        assert examples("tokenized", row, weights=name)[0].tokens.weights == values


@pytest.mark.parametrize(
    "other", [{"label": 1}, {"special_tokens_mask": [1, 0, 0]}, {"mask_id": [4]}, {"weight": None}]
)
def test_what_says_nothing_of_single_tokens_is_left_unread(other):
    assert examples("tokenized", {"input_ids": [5, 6, 7], **other})[0].tokens.input_ids == [5, 6, 7]


@pytest.mark.parametrize("mark", [{"no_loss": True}, {"supervise": False}, {"ignore_loss": 1}, {"is_trained": 0}])
def test_turns_marked_by_still_other_names_are_not_trained(mark):
    row = {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "bad", **mark}]}
    assert shown(row) == told(("user", "go")) + "<|im_start|>assistant\nbad<|im_end|>\n"


def test_a_key_is_not_read_because_the_template_prints_its_name():
    """Nearly all templates write <tool_call> around calls."""
    call = {"name": "f", "arguments": {"x": 1}}
    turns = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "ok", "tool_call": call}]
    assert '«ok<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call><|im_end|>»' in shown({"messages": turns})
    template = TEMPLATE.replace("{{ m.content or '' }}", "{{ m.content or '' }}<audio>{# tool_uses #}")
    for key in ("audio", "tool_uses"):
        row = {"messages": [turns[0], {"role": "assistant", "content": "ok", key: [{"a": "b"}]}]}
        with pytest.raises(RowError, match=key):
            shown(row, template=template)
