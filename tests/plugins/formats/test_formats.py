"""Each format: a row in, an example out, and errors that a user can act on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftcore import Example, Part, RecipeError, RowError, TokenizedRow
from sftcore.config.plugins.blocked import Blocklist
from sftcore.config.plugins.bound import bind
from sftcore.core.discovery import discover
from sftcore.core.registry import ActivePlugins
from sftcore.core.types import Selection
from sftcore.data.format import reader_for


def read(format_name: str, row: dict, **options) -> Example:
    bound = bind(Selection("format", format_name, options), discover(), Blocklist())
    (example,) = reader_for(bound, tuple(row), "data", ActivePlugins([])).read(row, 7)
    return example


def turns(messages) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def test_text_takes_the_named_column():
    assert read("text", {"body": "Hello"}, field="body") == Example(text="Hello")


def test_chat_keeps_roles_tools_and_template_arguments():
    tools = [{"type": "function", "function": {"name": "now", "description": None}}]
    row = {
        "messages": [
            {"role": "user", "content": "Hi", "name": None},
            {"role": "assistant", "content": "Ho", "reasoning_content": "hm"},
        ],
        "tools": json.dumps(tools),
        "chat_template_kwargs": {"enable_thinking": False, "other": None},
    }
    example = read("chat", row)
    assert turns(example.messages) == [("user", "Hi"), ("assistant", "Ho")]
    assert example.messages[1].reasoning == "hm"
    assert example.tools == tools  # a null in JSON is meant
    assert example.template_kwargs == {"enable_thinking": False}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_read_under_each_of_its_common_names(name):
    row = {"messages": [{"role": "assistant", "content": "4", name: "two and two", "tool_calls": None}]}
    (message,) = read("chat", row).messages
    assert (message.reasoning, message.extra) == ("two and two", {})


def test_tools_and_template_arguments_may_be_json_text_throughout():
    row = {
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": ['{"name": "now"}', {"name": "later", "description": None}],
        "chat_template_kwargs": '{"enable_thinking": false}',
    }
    example = read("chat", row)
    assert example.tools == [{"type": "function", "function": {"name": name}} for name in ("now", "later")]
    assert example.template_kwargs == {"enable_thinking": False}
    assert read("chat", {**row, "tools": " ", "chat_template_kwargs": ""}).tools is None


@pytest.mark.parametrize(
    "calls",
    [
        [{"type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}],
        [{"type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}', "other": None}}],
        [{"name": "now", "arguments": {"zone": "UTC", "format": None}, "function": None}],
        [{"name": "now", "parameters": {"zone": "UTC"}}],
        [{"name": "now", "input": {"zone": "UTC"}, "arguments": None}],
        '[{"name": "now", "arguments": "{\\"zone\\": \\"UTC\\"}"}]',
    ],
)
def test_tool_calls_reach_the_template_in_one_shape(calls):
    row = {"messages": [{"role": "assistant", "content": None, "tool_calls": calls}]}
    assert read("chat", row).messages[0].tool_calls == [
        {"type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}
    ]


def test_a_call_without_arguments_has_none_of_them():
    calls = [{"id": "1", "name": "now"}]
    (message,) = read("chat", {"messages": [{"role": "assistant", "content": "", "tool_calls": calls}]}).messages
    assert message.tool_calls == [{"type": "function", "id": "1", "function": {"name": "now", "arguments": {}}}]


def test_a_conversation_with_tools_keeps_every_turn_and_its_keys():
    row = {
        "messages": [
            {"role": "system", "content": "Be brief.", "tool_calls": None, "name": None, "cache": None},
            {"role": "user", "content": "time?", "tool_calls": None, "name": "ann", "cache": True},
            {"role": "assistant", "content": None, "tool_calls": [{"name": "now"}], "name": None, "cache": None},
            {"role": "tool", "content": "12:00", "tool_calls": None, "name": "now", "tool_call_id": "1"},
            {"role": "assistant", "content": [{"type": "text", "text": "Noon."}], "tool_calls": []},
        ]
    }
    messages = read("chat", row).messages
    assert [message.role for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert [message.name for message in messages] == [None, "ann", None, "now", None]
    assert [message.extra for message in messages] == [{}, {"cache": True}, {}, {}, {}]
    assert messages[3].tool_call_id == "1"
    assert messages[4].content == [Part("text", "Noon.")]


def test_rows_of_mixed_shape_survive_arrow_which_fills_them_with_nulls():
    from datasets import Dataset

    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {
            "messages": [
                {"role": "user", "content": "c"},
                {
                    "role": "assistant",
                    "reasoning": "d",
                    "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}],
                },
                {"role": "tool", "content": "e", "tool_call_id": "1"},
            ],
            "tools": [{"name": "f"}],
        },
    ]
    columns = ["messages", "tools"]
    filled = Dataset.from_list([{name: row.get(name) for name in columns} for row in rows])
    assert filled[0]["messages"][0]["tool_calls"] is None
    assert [read("chat", row) for row in filled] == [read("chat", row) for row in rows]


def test_further_columns_beside_messages_are_left_alone():
    row = {"prompt": "a", "prompt_id": 3, "messages": [{"role": "user", "content": "a"}]}
    assert turns(read("chat", row).messages) == [("user", "a")]


def test_sharegpt_keeps_what_else_a_turn_has():
    turn = {"from": "gpt", "value": "4", "thinking": "2 + 2", "weight": 0.5, "name": None}
    (message,) = read("sharegpt", {"conversations": [turn]}).messages
    assert (message.role, message.content, message.reasoning, message.weight) == ("assistant", "4", "2 + 2", 0.5)


def test_alpaca_puts_earlier_turns_before_the_instruction():
    example = read(
        "alpaca", {"instruction": "And 3?", "output": "9", "history": [["Square 2", "4"]], "system": "Count."}
    )
    assert turns(example.prompt) == [
        ("system", "Count."),
        ("user", "Square 2"),
        ("assistant", "4"),
        ("user", "And 3?"),
    ]


@pytest.mark.parametrize("shape", [list, tuple, "numpy", "torch"])
def test_tokenized_takes_lists_arrays_and_tensors(shape):
    import numpy as np
    import torch

    made = {"numpy": np.asarray, "torch": torch.tensor}.get(shape, shape)
    example = read("tokenized", {"input_ids": made([5, 6, 7]), "completion_mask": made([0, 1, 1])})
    assert example.tokens == TokenizedRow([5, 6, 7], [-100, 6, 7])


def test_chat_maps_roles_by_its_option():
    row = {"messages": [{"role": "me", "content": "Ho"}]}
    assert turns(read("chat", row, roles={"me": "assistant"}).messages) == [("assistant", "Ho")]


@pytest.mark.parametrize(
    ("turns_", "trained"),
    [("all", [None, None]), ("answers", [True, True]), ("last", [False, True]), ("first 1", [True, False])],
)
@pytest.mark.parametrize("format_name", ["chat", "sharegpt"])
def test_all_answers_the_last_or_the_first_can_be_trained_alone(format_name, turns_, trained):
    said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = (
        {"messages": [{"role": role, "content": text} for role, text in said]}
        if format_name == "chat"
        else {"conversations": [{"from": role, "value": text} for role, text in said]}
    )
    messages = read(format_name, row, trained_turns=turns_).messages
    assert [message.train for message in messages if message.role == "assistant"] == trained
    with pytest.raises(RecipeError, match='trained_turns is "all", "answers", "last" or "first N"'):
        read(format_name, row, trained_turns="second")


def test_prompt_completion_takes_texts_and_messages():
    assert read("prompt-completion", {"prompt": "a", "completion": "b"}, separator=" ") == Example(
        prompt="a ", completion="b"
    )
    row = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
    example = read("prompt-completion", row)
    assert turns(example.prompt) == [("user", "a")]
    assert turns(example.completion) == [("assistant", "b")]


def test_alpaca_joins_instruction_and_input_and_answers_with_the_output():
    example = read("alpaca", {"instruction": "Add", "input": "1 2", "output": "3"})
    assert turns(example.prompt) == [("user", "Add\n1 2")]
    assert turns(example.completion) == [("assistant", "3")]


def test_alpaca_style_gives_the_original_prompt_text():
    example = read("alpaca", {"instruction": "Add", "input": None, "output": "3"}, style="alpaca")
    assert example.prompt.startswith("Below is an instruction that describes a task. Write")
    assert example.prompt.endswith("### Instruction:\nAdd\n\n### Response:\n")
    assert example.completion == "3"


def test_sharegpt_turns_function_calls_into_tool_calls():
    row = {
        "conversations": [
            {"from": "human", "value": "time?"},
            {"from": "function_call", "value": '{"name": "now", "arguments": {"zone": "UTC"}}'},
            {"from": "observation", "value": "12:00"},
            {"from": "gpt", "value": "Noon."},
        ],
        "tools": "[]",
    }
    example = read("sharegpt", row)
    assert [message.role for message in example.messages] == ["user", "assistant", "tool", "assistant"]
    assert example.messages[1].tool_calls == [
        {"type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}
    ]
    kept = read("sharegpt", row, function_call="content").messages[1]
    assert kept.content == '{"name": "now", "arguments": {"zone": "UTC"}}'


def test_tokenized_makes_labels_of_masks():
    example = read("tokenized", {"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "assistant_masks": [1, 1, 0]})
    assert example.tokens.labels == [-100, 6, -100]


@pytest.mark.parametrize(
    ("format_name", "row", "said"),
    [
        ("text", {"text": 3}, 'the column "text" holds a number, not a text: 3.'),
        ("text", {"title": "x"}, 'the column "text" is missing. The row has: title.'),
        ("alpaca", {"instruction": "x", "output": None}, 'the column "output" is null.'),
        ("chat", {"messages": "hello"}, "is a text, not a list of messages: 'hello'"),
        ("chat", {"messages": []}, "is an empty list"),
        ("chat", {"messages": ["hello"]}, "messages[0] is a text, not a message"),
        ("chat", {"messages": [{"role": "me", "content": "x"}]}, 'role "me" is not known'),
        ("chat", {"messages": [{"role": "me", "content": "x"}]}, "format: {chat: {roles: {me: ROLE}}}"),
        ("chat", {"messages": [{"role": "user", "content": None}]}, 'messages[0] (user) has no "content"'),
        ("chat", {"messages": [{"role": "user", "content": 3}]}, "content is a number, not a text: 3"),
        (
            "chat",
            {"messages": [{"role": "user", "content": "x"}], "tools": "{"},
            'the column "tools" is not valid JSON',
        ),
        (
            "prompt-completion",
            {"prompt": "a", "completion": [{"role": "user"}]},
            'completion[0] (user) has no "content"',
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": "now()"}]},
            "is not a function_call in JSON with name",
        ),
        ("sharegpt", {"conversations": [{"from": "alien", "value": "x"}]}, 'role "alien" is not known'),
        ("tokenized", {"input_ids": [1, 2], "labels": [1]}, '"labels" has 1 entries, "input_ids" 2'),
        ("tokenized", {"input_ids": [1, 2], "completion_mask": [1]}, '"completion_mask" has 1 entries, "input_ids" 2'),
        ("tokenized", {"input_ids": [1, 2], "completion_mask": [0, 2]}, '"completion_mask" holds 2, and a mask'),
        ("tokenized", {"input_ids": [1, -2]}, '"input_ids" holds -2, and token ids begin at 0'),
        ("tokenized", {"input_ids": [1, 2.5]}, '"input_ids" holds 2.5, which is not a token id'),
        ("tokenized", {"input_ids": [[1, 2]]}, '"input_ids" holds [1, 2], which is not a token id'),
        ("tokenized", {"input_ids": "1 2"}, '"input_ids" is not a list of numbers but str'),
        (
            "tokenized",
            {"input_ids": [1, 2], "labels": [-1, 2]},
            '"labels" holds -1, which is not a token id. -100 marks',
        ),
        ("tokenized", {"input_ids": [1, 2], "weights": [0.5, 2]}, '"weights" holds a number outside 0.0 to 1.0'),
        ("chat", {"messages": [{"role": 3, "content": "x"}]}, "messages[0]: role is a number, not a text: 3"),
        ("chat", {"messages": [{"role": "user", "content": "x", "thinking": 3}]}, "(user): thinking is a number"),
        (
            "chat",
            {"messages": [{"role": "assistant", "content": "x", "thinking": "a", "reasoning": "b"}]},
            "messages[0] (assistant): reasoning and thinking differ. Keep one of them.",
        ),
        (
            "chat",
            {"messages": [{"role": "assistant", "tool_calls": "now()"}]},
            "(assistant): tool_calls is not valid JSON",
        ),
        (
            "chat",
            {"messages": [{"role": "assistant", "tool_calls": ["now"]}]},
            "tool_calls is not a list of tool calls",
        ),
        (
            "chat",
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]},
            "messages[0] (assistant): tool_calls[0] does not name a function: {'function': {'arguments': '{}'}}.",
        ),
        ("chat", {"messages": [{"role": "user", "content": "x"}], "tools": ["now"]}, "tools[0] is not valid JSON"),
        ("chat", {"messages": None, "text": "x"}, 'the column "messages" is null. The row has: text.'),
        ("prompt-completion", {"prompt": "a", "completion": 3}, 'the column "completion" holds a number, not a text'),
        ("prompt-completion", {"prompt": "a", "completion": None}, 'the column "completion" is null'),
        (
            "alpaca",
            {"instruction": "x", "output": "y", "history": [["a"]]},
            "history[0] is a list, not a message",
        ),
    ],
)
def test_a_bad_row_is_refused_with_its_number_and_what_is_wrong(format_name, row, said):
    with pytest.raises(RowError) as caught:
        read(format_name, row)
    assert str(caught.value).startswith("data row 7: ")
    assert said in str(caught.value)


def test_whatever_a_format_raises_names_the_row():
    class Broken:
        def __call__(self, row):
            return row["nowhere"] / 0

    from sftcore.data.format import RowReader

    with pytest.raises(RowError, match=r'data row 3: format "x" needs the column \'nowhere\'.*The row has: a'):
        RowReader('format "x"', Broken(), "data").read({"a": 1}, 3)
    with pytest.raises(RowError, match=r"data row 3: .*failed: TypeError"):
        RowReader('format "x"', Broken(), "data").read({"nowhere": "text"}, 3)


_leaf = st.one_of(
    st.none(), st.booleans(), st.integers(-200, 200), st.floats(), st.text(max_size=4),
    st.sampled_from(["user", "assistant", "[]", "{}", "[1]", "human", "function_call", "tool"]),
)  # fmt: skip
_keys = st.sampled_from(
    ["role", "content", "from", "value", "train", "weight", "thinking", "tool_calls", "name", "function", "arguments"]
)
_anything = st.recursive(
    _leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=10,
)
_turn = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": _anything},
    optional={"tool_calls": _anything, "weight": _leaf, "train": _leaf, "thinking": _leaf, "extra": _anything},
)
_columns = st.sampled_from(
    ["messages", "prompt", "completion", "conversations", "system", "instruction", "output", "history", "text",
     "input_ids", "labels", "weights", "completion_mask", "tools", "chat_template_kwargs"]
)  # fmt: skip
_value = st.one_of(_anything, st.lists(_turn, max_size=3), st.lists(st.integers(-5, 5), max_size=4))
READERS = {
    name: reader_for(bind(Selection("format", name), discover(), Blocklist()), (), "data", ActivePlugins([]))
    for name in ("text", "chat", "prompt-completion", "sharegpt", "alpaca", "tokenized")
}


@given(row=st.dictionaries(_columns, _value, max_size=10))
@settings(deadline=None, max_examples=300)
def test_whatever_a_row_holds_a_format_reads_it_or_says_what_is_wrong(row):
    assert not [said for reader in READERS.values() if "failed:" in (said := refusal(reader, row))]


def refusal(reader, row: dict) -> str:
    """What a format says of a row that it does not read; "failed:" in it is an error of Python's."""
    try:
        reader.read(row, 0)
    except RowError as error:
        return error.what
    return ""
