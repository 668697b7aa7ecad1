"""The package as its users meet it: it must be installed (`pip install ".[test]"`)."""

import json

import pytest
from sftcore_function_calls import FunctionCalls

from sftcore import RowError
from sftcore.testing import FormatTests

pytest_plugins = "sftcore.testing"

WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}
ROWS = [
    {
        "query": "Will it rain in Oslo?",
        "tools": json.dumps([WEATHER]),
        "answers": json.dumps([{"name": "weather", "arguments": {"city": "Oslo", "days": 1}}]),
    },
    {
        "query": "Compare Rome and Turin.",
        "tools": json.dumps([WEATHER]),
        "answers": json.dumps([{"name": "weather", "arguments": {"city": city}} for city in ("Rome", "Turin")]),
    },
]


class TestFunctionCalls(FormatTests):
    plugin = FunctionCalls
    rows = ROWS
    supervised = [
        '<call>{"name": "weather", "arguments": {"city": "Oslo", "days": 1}}</call>',
        '<call>{"name": "weather", "arguments": {"city": "Rome"}}</call>'
        '<call>{"name": "weather", "arguments": {"city": "Turin"}}</call>',
    ]


def read(row):
    return FunctionCalls().make_formatter(tuple(row))(row)


def test_a_row_is_the_conversation_that_the_format_chat_makes_of_its_messages():
    from sftcore_plugins.formats.chat import Chat

    calls = [{"type": "function", "function": call} for call in json.loads(ROWS[1]["answers"])]
    turns = [{"role": "user", "content": ROWS[1]["query"]}, {"role": "assistant", "tool_calls": calls}]
    same = {"messages": turns, "tools": [{"type": "function", "function": WEATHER}]}
    expected = Chat().make_formatter(tuple(same))(same)
    example = read(ROWS[1])
    assert [*example.prompt, *example.completion] == expected.messages
    assert example.tools == expected.tools


def test_lists_are_read_as_json_of_them_is():
    listed = {**ROWS[0], "tools": [WEATHER], "answers": json.loads(ROWS[0]["answers"])}
    assert read(listed) == read(ROWS[0])


@pytest.mark.parametrize(("answers", "said"), [("[]", "holds no call"), ("[{", "is not valid JSON"), (None, "is null")])
def test_answers_without_a_call_are_refused(answers, said):
    with pytest.raises(RowError, match=f'the column "answers" {said}'):
        read({**ROWS[0], "answers": answers})
