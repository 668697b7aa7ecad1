"""What conversations are made of elsewhere: each row is compared with its rendering, written by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sftcore import RowError
from tests.plugins.formats.rendered import notes, shown, told

ASKED, ANSWERED = {"role": "user", "content": "go"}, {"role": "assistant", "content": "ok"}
PLAIN = told(("user", "go"), ("assistant", "ok"))
CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
CALLED = told(("user", "go"), ("assistant", f"Look.{CALL}"), ("tool", "42"), ("assistant", "ok"))
ALONE = told(("user", "go"), ("assistant", CALL), ("tool", "42"), ("assistant", "ok"))
FUNCTION = {"name": "f", "arguments": {"x": 1}}
OPENAI = {
    "role": "assistant",
    "content": "Look.",
    "tool_calls": [{"id": "a", "type": "function", "function": FUNCTION}],
}
RESULT = {"role": "tool", "content": "42", "tool_call_id": "a"}


# --- Where the turns stand
@pytest.mark.parametrize(
    "messages",
    [
        [ASKED, ANSWERED],
        json.dumps([ASKED, ANSWERED]),
        [json.dumps(ASKED), json.dumps(ANSWERED)],
        (ASKED, ANSWERED),
        np.array([ASKED, ANSWERED], dtype=object),
        {"role": ["user", "assistant"], "content": ["go", "ok"]},
        [{"from": "human", "value": "go"}, {"from": "gpt", "value": "ok"}],
        [{"role": "user", "value": "go"}, {"role": "assistant", "text": "ok"}],
        [{"speaker": "Human", "text": "go"}, {"speaker": "Bot", "text": "ok"}],
        [{"role": "user", "parts": [{"text": "go"}]}, {"role": "model", "parts": [{"text": "o"}, {"text": "k"}]}],
        [{"role": "user", "content": np.array([{"type": "text", "text": "go"}], dtype=object)}, ANSWERED],
        [{"author": {"role": "user"}, "content": {"content_type": "text", "parts": ["go"]}}, ANSWERED],
        [ASKED, {**ANSWERED, "tool_calls": float("nan"), "name": None}],
        [{"type": "human", "content": "go"}, {"type": "ai", "data": {"content": "ok"}}],  # LangChain
    ],
)
def test_turns_are_read_wherever_they_stand(messages):
    assert shown({"messages": messages}) == PLAIN


@pytest.mark.parametrize("value", ["hello", "[1, 2", 3, {"role": "user"}, "[{'role': 'user', 'content': 'a'}]"])
def test_what_holds_no_turns_is_refused(value):
    with pytest.raises(RowError, match='the column "messages" '):
        shown({"messages": value})


@pytest.mark.parametrize("column", ["conversation", "dialog", "items"])
def test_conversations_under_other_names_are_read_by_one_line(column):
    assert shown({column: [ASKED, ANSWERED]}, messages=column) == PLAIN


# --- System prompts beside the turns
SYSTEM = told(("system", "Be brief."), ("user", "go"), ("assistant", "ok"))
SHARED = [{"from": "human", "value": "go"}, {"from": "gpt", "value": "ok"}]


@pytest.mark.parametrize("column", ["system", "system_prompt", "systemInstruction"])
@pytest.mark.parametrize(
    "given", ["Be brief.", [{"type": "text", "text": "Be brief."}], {"parts": [{"text": "Be brief."}]}]
)
def test_a_system_prompt_beside_the_turns_stands_before_them(column, given):
    assert shown({"messages": [ASKED, ANSWERED], column: given}) == SYSTEM
    assert shown({"conversations": SHARED, column: given}, "sharegpt") == SYSTEM
    assert shown({"messages": [ASKED, ANSWERED], "of": given}, system="of") == SYSTEM


@pytest.mark.parametrize("given", [None, "", []])
def test_without_a_system_prompt_there_is_none(given):
    assert shown({"messages": [ASKED, ANSWERED], "system": given}) == PLAIN
    assert shown({"conversations": SHARED, "system": given}, "sharegpt") == PLAIN


def test_a_system_prompt_that_stands_in_both_places_is_said_once_or_refused():
    first = {"role": "system", "content": "Be brief."}
    assert shown({"messages": [first, ASKED, ANSWERED], "system": "Be brief.\n"}) == SYSTEM
    assert shown({"messages": [{**first, "content": ""}, ASKED, ANSWERED], "system": "Be brief."}) == SYSTEM
    with pytest.raises(RowError, match='the column "system" and the first message hold two system prompts that differ'):
        shown({"messages": [first, ASKED, ANSWERED], "system": "Be long."})
    assert shown({"messages": [first, ASKED, ANSWERED], "system": "Be long."}, system="") == SYSTEM
    with pytest.raises(RowError, match='the column "system" holds a number, not a text'):
        shown({"messages": [ASKED, ANSWERED], "system": 3})


def test_a_developers_words_are_the_systems_where_the_template_leaves_them_out():
    dropping = (
        "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    )
    refusing = dropping.replace("{% endif %}", "{% else %}{{ raise_exception('Unknown role') }}{% endif %}")
    row = {"messages": [{"role": "Developer", "content": "Be brief."}, ASKED, ANSWERED]}
    assert shown(row, template=dropping) == shown(row, template=refusing) == SYSTEM
    assert notes(row, template=dropping) == [
        "developer messages are rendered as system messages, because the chat template leaves them out"
    ]
    assert shown(row) == SYSTEM.replace("system", "developer")


# --- Calls
@pytest.mark.parametrize(
    "turns",
    [
        [OPENAI, RESULT],
        [{**OPENAI, "tool_calls": json.dumps([FUNCTION])}, RESULT],
        [{**OPENAI, "tool_calls": [json.dumps(FUNCTION)]}, RESULT],
        [{**OPENAI, "tool_calls": FUNCTION}, RESULT],
        [
            {"role": "assistant", "content": "Look.", "function_call": {"name": "f", "arguments": '{"x": 1}'}},
            {"role": "function", "name": "f", "content": "42"},
        ],
        [{"role": "assistant", "content": "Look.", "function_call": json.dumps(FUNCTION)}, RESULT],
        [{"role": "assistant", "content": "Look."}, {**OPENAI, "content": None}, RESULT],
        [{"role": "assistant", "content": "Look."}, {"role": "tool_call", "content": json.dumps(FUNCTION)}, RESULT],
        [{"role": "assistant", "content": "Look."}, {"role": "Tool_Calls", "content": json.dumps([FUNCTION])}, RESULT],
        [  # Anthropic
            {"role": "assistant", "content": [
                {"type": "text", "text": "Look."}, {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}}
            ]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "42"}]},
        ],
        [
            {"role": "assistant", "content": "Look."},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "42"}]}
            ]},
        ],
        [  # Bedrock
            {"role": "assistant", "content": [
                {"text": "Look."}, {"toolUse": {"toolUseId": "a", "name": "f", "input": {"x": 1}}}
            ]},
            {"role": "user", "content": [
                {"toolResult": {"toolUseId": "a", "content": [{"text": "42"}], "status": "success"}}
            ]},
        ],
        [  # Gemini
            {"role": "model", "parts": [{"text": "Look."}, {"functionCall": {"name": "f", "args": {"x": 1}}}]},
            {"role": "function", "parts": [{"functionResponse": {"name": "f", "response": 42}}]},
        ],
        [  # Vercel
            {"role": "assistant", "content": [
                {"type": "text", "text": "Look."},
                {"type": "tool-call", "toolCallId": "a", "toolName": "f", "args": {"x": 1}},
            ]},
            {"role": "tool", "content": [
                {"type": "tool-result", "toolCallId": "a", "toolName": "f", "result": "42"}
            ]},
        ],
        [  # OpenAI's Responses
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Look."}]},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": '{"x": 1}'},
            {"type": "function_call_output", "call_id": "a", "output": "42"},
        ],
    ],
)  # fmt: skip
def test_calls_and_their_results_are_the_same_conversation_however_they_are_written(turns):
    assert shown({"messages": [ASKED, *turns, ANSWERED]}) == CALLED


def test_what_a_tool_answers_with_may_be_json():
    for content in ({"r": 42}, [{"r": 42}]):
        row = {"messages": [ASKED, OPENAI, {**RESULT, "content": content}, ANSWERED]}
        assert shown(row) == CALLED.replace("42", json.dumps(content))
    row = {"messages": [ASKED, OPENAI, {"role": "user", "parts": [
        {"functionResponse": {"name": "f", "response": {"r": 42}}}
    ]}, ANSWERED]}  # fmt: skip
    assert shown(row) == CALLED.replace("42", '{"r": 42}')


def test_calls_of_sharegpt_follow_words_in_one_message():
    turns = [
        ("human", "go"),
        ("gpt", "Look."),
        ("function_call", json.dumps(FUNCTION)),
        ("observation", "42"),
        ("gpt", "ok"),
    ]
    row = {"conversations": [{"from": who, "value": what} for who, what in turns]}
    assert shown(row, "sharegpt") == CALLED
    assert shown({"messages": row["conversations"]}) == CALLED
    del row["conversations"][1]
    assert shown(row, "sharegpt") == ALONE


def test_a_call_in_words_may_stay_text():
    turns = [ASKED, {"role": "tool_call", "content": "f(x=1)"}]
    with pytest.raises(RowError, match=r"not a function_call in JSON.*format: {chat: {roles: {tool_call: assistant}}}"):
        shown({"messages": turns})
    assert shown({"messages": turns}, roles={"tool_call": "assistant"}) == PLAIN.replace("ok", "f(x=1)")


SCHEMA = {"name": "f", "description": "d", "parameters": {"type": "object"}}
WRAPPED = json.dumps({"type": "function", "function": SCHEMA}) + "\n"


@pytest.mark.parametrize(
    "tools",
    [
        SCHEMA, [SCHEMA], json.dumps(SCHEMA), json.dumps([SCHEMA]), [json.dumps(SCHEMA)],
        {"type": "function", **SCHEMA},
        {"type": "function", "function": SCHEMA},
        [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        [{"functionDeclarations": [SCHEMA]}], [{"function_declarations": [SCHEMA]}],
        [{"toolSpec": {"name": "f", "description": "d", "inputSchema": {"json": {"type": "object"}}}}],
        np.array([SCHEMA], dtype=object), [SCHEMA, None], {"f": {"description": "d", "parameters": {"type": "object"}}},
    ],
)  # fmt: skip
def test_schemas_of_tools_are_one_however_they_are_written(tools):
    assert shown({"messages": [ASKED, ANSWERED], "tools": tools}) == WRAPPED + PLAIN


@pytest.mark.parametrize("column", ["functions", "tool_defs"])
def test_schemas_under_another_name_are_read_where_there_are_none_under_their_own(column):
    assert shown({"messages": [ASKED, ANSWERED], column: [SCHEMA]}) == WRAPPED + PLAIN
    shared = [{"from": "human", "value": "go"}, {"from": "gpt", "value": "ok"}]
    assert shown({"conversations": shared, column: json.dumps([SCHEMA])}, "sharegpt") == WRAPPED + PLAIN
    assert shown({"messages": [ASKED, ANSWERED], "tools": float("nan")}) == PLAIN


def test_a_call_that_arrow_filled_with_nulls_is_none():
    empty = {"name": None, "arguments": None}
    assert shown({"messages": [ASKED, {**ANSWERED, "function_call": empty}]}) == PLAIN
    with pytest.raises(RowError, match='has no "content"'):
        shown({"messages": [ASKED, {"role": "assistant", "content": None, "function_call": empty}]})


# --- Thoughts, and other parts
@pytest.mark.parametrize(
    "answer",
    [
        {"content": "ok", "reasoning_content": "hm"},
        {"content": "ok", "thoughts": "hm"},
        {"content": [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "ok"}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "ok"},
            ]
        },
        {"content": [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "ok"}]},
        {"content": "ok", "reasoning": [{"type": "text", "text": "hm"}], "thinking": ""},
        {"content": [{"reasoningContent": {"reasoningText": {"text": "hm"}}}, {"text": "ok"}]},
        {"parts": [{"text": "hm", "thought": True}, {"text": "ok"}]},
    ],
)
def test_thoughts_are_reasoning_however_they_are_written(answer):
    expected = told(("user", "go"), ("assistant", "<think>hm</think>ok"))
    assert shown({"messages": [ASKED, {"role": "assistant", **answer}]}) == expected


def test_an_item_of_reasoning_belongs_to_the_answer_behind_it():
    item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    expected = told(("user", "go"), ("assistant", "<think>hm</think>ok"))
    assert shown({"messages": [ASKED, item, ANSWERED]}) == expected


@pytest.mark.parametrize(
    "part",
    [
        "ok", {"type": "text", "text": "ok"}, {"type": "text", "value": "ok"}, {"type": "text", "content": "ok"},
        {"type": "text", "text": {"value": "ok", "annotations": []}}, {"type": "output_text", "text": "ok"},
        {"text": "ok"}, {"type": "refusal", "refusal": "ok"},
    ],
)  # fmt: skip
def test_texts_are_texts_in_parts_of_all_providers(part):
    assert shown({"messages": [ASKED, {"role": "assistant", "content": [part]}]}) == PLAIN


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "redacted_thinking", "data": "x"}, "redacted_thinking"), ({"type": "audio"}, "audio"),
        ({"reasoningContent": {"redactedContent": "x"}}, "redacted_thinking"), ({"weird": 1}, "has no type"),
        ({"type": "document", "source": {}}, "document"), (3, "has no type"),
    ],
)  # fmt: skip
def test_parts_that_hold_no_text_are_refused(part, said):
    with pytest.raises(RowError, match=said):
        shown({"messages": [ASKED, {"role": "assistant", "content": [{"type": "text", "text": "ok"}, part]}]})


# --- What counts
BAD = told(("user", "go"), ("assistant", "bad")).replace("«", "").replace("»", "") + PLAIN


@pytest.mark.parametrize(
    "mark",
    [
        {"loss": False}, {"loss": 0}, {"loss_mask": 0}, {"trainable": False}, {"masked": True}, {"train": False},
        {"train": 0}, {"weight": 0}, {"loss_weight": 0.0}, {"loss_scale": 0.0}, {"loss": 0.0},
        {"loss": None, "train": False}, {"loss": True, "weight": 0},
    ],
)  # fmt: skip
def test_marks_of_turns_that_are_not_trained_are_read_in_every_shape(mark):
    bad, good = {"role": "assistant", "content": "bad", **mark}, {**ANSWERED, **dict.fromkeys(mark)}
    assert shown({"messages": [ASKED, bad, ASKED, good]}) == BAD
    shared = [{"from": "human", "value": "go"}, {"from": "gpt", "value": "bad", **mark}, *SHARED]
    assert shown({"conversations": shared}, "sharegpt") == BAD
    if "train" not in mark:
        part = {"role": "assistant", "content": [{"type": "text", "text": "bad", **mark}]}
        assert shown({"messages": [ASKED, part, ASKED, ANSWERED]}) == BAD


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ({"mask": 1}, '"mask", which says'), ({"mask": False}, '"mask", which says'),
        ({"loss": "no"}, 'has "loss": "no"'),
        ({"loss_weight": 2}, '"loss_weight": 2'), ({"weight": 0.5, "loss_weight": 0.25}, "two weights that differ"),
        ({"train": "false"}, "train must be true or false"), ({"masked": [1, 0]}, '"masked": .1, 0.'),
    ],
)  # fmt: skip
def test_marks_that_cannot_be_read_are_refused_by_name(mark, said):
    with pytest.raises(RowError, match=said):
        shown({"messages": [ASKED, {**ANSWERED, **mark}]})


# --- Keys
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"content": "Let me.", "function_calls": "f(x=1)"}, "function_calls"),
        ({"content": None, "function_calls": "f(x=1)"}, "function_calls"),
        ({"content": "Let me.", "audio": {"id": "1"}}, "audio"),
        ({"content": "Let me.", "function_call": "f"}, "function_call"),
        ({"content": "Let me.", "refusal": "I cannot."}, "refusal"),
        ({"content": "Let me.", "reasoning": "a", "thoughts": "b"}, "thoughts"),
        ({"content": "Let me.", "reasoning_details": [{"text": "hm"}]}, "reasoning_details"),
    ],
)
def test_what_the_assistant_says_under_a_key_that_the_template_does_not_know_is_refused(answer, said):
    with pytest.raises(RowError, match=f'message 1 has "{said}", which the chat template does not render'):
        shown({"messages": [ASKED, {"role": "assistant", **answer}]})


def test_a_key_that_the_template_prints_is_passed_on():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
        "{% if m.function_calls %}<calls>{{ m.function_calls }}</calls>{% endif %}<|im_end|>\n{% endfor %}"
    )
    row = {"messages": [ASKED, {"role": "assistant", "content": None, "function_calls": "f(x=1)"}]}
    expected = told(("user", "go"), ("assistant", "<calls>f(x=1)</calls>"))
    assert shown(row, template=template, asked={}) == f"«{expected.replace('«', '').replace('»', '')}»"


def test_keys_that_nothing_reads_are_named_once_with_an_example():
    row = {"messages": [
        {**ASKED, "id": 17, "empty": "", "list": []},
        {"role": "assistant", "id": 18, "content": [{"type": "text", "text": "ok", "citations": ["p. 3"], "id": 5}]},
    ]}  # fmt: skip
    assert shown(row) == PLAIN
    assert notes(row) == [
        'the key "id" of messages is not read, for example 17',
        'the key "citations" of "text" parts is not read, for example [\'p. 3\']',
        'the key "id" of "text" parts is not read, for example 5',
    ]


@pytest.mark.parametrize("template", [
    "{% for m in messages %}{{ m | tojson }}<|im_end|>\n{% endfor %}",
    "{% for m in messages %}{% for k, v in m.items() %}{{ k }}={{ v }};{% endfor %}<|im_end|>\n{% endfor %}",
])  # fmt: skip
def test_a_template_that_prints_messages_whole_reads_every_key(template):
    row = {"messages": [{**ASKED, "mood": "glad"}, ANSWERED]}
    assert "glad" in shown(row, template=template, asked={})
    assert not [note for note in notes_of_all(row, template) if "is not read" in note]


def notes_of_all(row, template):
    from sftcore.chat.render import Renderer
    from tests.conftest import make_tokenizer
    from tests.plugins.formats.rendered import examples

    return Renderer(make_tokenizer(template=template)).render(examples("chat", row)[0]).notes
