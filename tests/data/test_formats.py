"""Each format: a row in, an example out, and errors that a user can act on."""

from __future__ import annotations

import json

import pytest

from sftcore import Example, RecipeError, RowError
from sftcore.data.format import reader_for
from sftcore.discovery import discover
from sftcore.registry import Blocklist, bind
from sftcore.types import Selection


def read(format_name: str, row: dict, **options) -> Example:
    bound = bind(Selection("format", format_name, options), discover(), Blocklist())
    (example,) = reader_for(bound, tuple(row), "data").read(row, 7)
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
    assert example.tools == [{"type": "function", "function": {"name": "now"}}]
    assert example.template_kwargs == {"enable_thinking": False}


def test_chat_maps_roles_by_its_option():
    row = {"messages": [{"role": "bot", "content": "Ho"}]}
    assert turns(read("chat", row, roles={"bot": "assistant"}).messages) == [("assistant", "Ho")]


@pytest.mark.parametrize(
    ("turns_", "trained"), [("all", [None, None]), ("last", [False, True]), ("first 1", [True, False])]
)
@pytest.mark.parametrize("format_name", ["chat", "sharegpt"])
def test_the_last_or_the_first_turns_can_be_trained_alone(format_name, turns_, trained):
    said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = (
        {"messages": [{"role": role, "content": text} for role, text in said]}
        if format_name == "chat"
        else {"conversations": [{"from": role, "value": text} for role, text in said]}
    )
    messages = read(format_name, row, trained_turns=turns_).messages
    assert [message.train for message in messages if message.role == "assistant"] == trained
    with pytest.raises(RecipeError, match='trained_turns is "all", "last" or "first N"'):
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
        ("chat", {"messages": "hello"}, "not a list of messages but a text: 'hello'"),
        ("chat", {"messages": []}, "is an empty list"),
        ("chat", {"messages": ["hello"]}, "messages[0] is a text, not a message"),
        ("chat", {"messages": [{"role": "bot", "content": "x"}]}, 'role "bot" is not known'),
        ("chat", {"messages": [{"role": "bot", "content": "x"}]}, "format: {chat: {roles: {bot: assistant}}}"),
        ("chat", {"messages": [{"role": "user", "content": None}]}, 'messages[0] (user) has no "content"'),
        ("chat", {"messages": [{"role": "user", "content": 3}]}, "content is a number, not a text: 3"),
        ("chat", {"messages": [{"role": "user", "content": "x"}], "tools": "{"}, 'the column "tools" is no JSON'),
        ("prompt-completion", {"prompt": "a", "completion": [{"role": "user"}]}, "not both texts or both lists"),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "now()"}]}, "is no JSON with name"),
        ("sharegpt", {"conversations": [{"from": "alien", "value": "x"}]}, 'role "alien" is not known'),
        ("tokenized", {"input_ids": [1, 2], "labels": [1]}, '"labels" has 1 entries, "input_ids" 2'),
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
