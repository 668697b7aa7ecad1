"""TRL's public data functions: what they give is compared with what the installed TRL gives, example by example."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from pathlib import Path

import datasets
import pytest
import trl
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import chat_template_utils as trl_templates
from trl import data_utils as trl_data

import sftcore
from sftcore import DataError, ModelError, data_utils
from sftcore.compat.chat_template_utils import has_generation_markers
from sftcore.core.errors import OptionTypeError
from tests.conftest import CHATML, CHATML_MARKED, make_tokenizer

FOLDER = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The time.",
            "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]},
        },
    }
]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


def in_parts(turns: list[dict]) -> list[dict]:
    return [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]


KEYS = ("messages", "prompt", "completion", "chosen", "rejected")
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = assistant("", tool_calls=[{"type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}])
ANSWER = {"role": "tool", "name": "now", "content": "12:00"}
EXAMPLES = {
    "one turn": {"messages": [user("Hi"), assistant("Ho")]},
    "many turns": {"messages": [SYSTEM, user("a"), assistant("b"), user("c"), assistant(" d\n")]},
    "ends with the user": {"messages": [user("a"), assistant("b"), user("c")]},
    "unicode": {"messages": [user("été 北京 🙂"), assistant("<|im_end|> {{ x }}")]},
    "prompt": {"prompt": [user("a")]},
    "prompt of many turns": {"prompt": [SYSTEM, user("a"), assistant("b"), user("c")]},
    "prompt to go on with": {"prompt": [user("a"), assistant("The answer")]},
    "prompt that ends with a tool": {"prompt": [user("time?"), CALL, ANSWER]},
    "prompt and completion": {"prompt": [user("a")], "completion": [assistant("b")]},
    "with a label": {"prompt": [user("a")], "completion": [assistant("b")], "label": True},
    "system, prompt and completion": {"prompt": [SYSTEM, user("a")], "completion": [assistant("b"), user("c")]},
    "prompt gone on with": {"prompt": [user("a"), assistant("b")], "completion": [assistant("c")]},
    "tool, then completion": {"prompt": [user("time?"), CALL, ANSWER], "completion": [assistant("Noon.")]},
    "reasoning": {"prompt": [user("2+2")], "completion": [assistant("4", reasoning_content="two and two")]},
    "thinking": {"messages": [user("2+2"), assistant("4", thinking="two and two")]},
    "a label of False": {"prompt": [user("a")], "completion": [assistant("b")], "label": False},
    "preference": {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]},
    "preference gone on with": {
        "prompt": [user("a"), assistant("b")], "chosen": [assistant("c")], "rejected": [user("d"), assistant("e")],
    },
    "preference after a tool": {
        "prompt": [user("time?"), CALL, ANSWER], "chosen": [assistant("Noon.")], "rejected": [CALL],
    },
    "preference with an implicit prompt": {
        "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c"), user("d")],
    },
    "preference with reasoning": {
        "prompt": [user("2+2")], "chosen": [assistant("4", reasoning_content="two")], "rejected": [assistant("5")],
    },
    "arguments of its own": {"prompt": [user("a")], "chat_template_kwargs": {"enable_thinking": False}},
}  # fmt: skip

PARTS = {
    f"{name}, in parts": {key: in_parts(value) if key in KEYS else value for key, value in example.items()}
    for name, example in EXAMPLES.items()
}


def outcome(function, *args, **kwargs):
    """What a function returns, or that it raised."""
    try:
        return function(*args, **kwargs)
    except Exception:
        return "raised"


@pytest.fixture(scope="module")
def any_tokenizer():
    return make_tokenizer(bos=True)


SHARED = sorted(set(sftcore.__all__) & set(trl.__all__ if hasattr(trl, "__all__") else dir(trl)) - {"__version__"})


def test_the_names_that_scripts_import_are_there():
    assert {
        "SFTTrainer", "SFTConfig", "ModelConfig", "ScriptArguments", "DatasetMixtureConfig", "TrlParser", "get_dataset",
        "init_zero_verbose", "get_training_chat_template", "supports_tool_calling", "get_peft_config",
        "get_quantization_config", "apply_chat_template", "maybe_apply_chat_template", "is_conversational",
        "is_conversational_from_value", "maybe_convert_to_chatml", "pack_dataset", "prepare_multimodal_messages",
        "RichProgressCallback",
    } <= set(SHARED)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in SHARED
        if inspect.isroutine(getattr(trl, name)) and getattr(sftcore, name).__module__ != "sftcore.config.model_config"
    ],
)
def test_functions_take_the_arguments_of_trls_in_their_order(name):
    def arguments(function):
        return [(one.name, one.kind, one.default) for one in inspect.signature(function).parameters.values()]

    assert arguments(getattr(sftcore, name)) == arguments(getattr(trl, name))


# --- Conversations --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_of_trl_renders_every_example_as_trl_renders_it(any_tokenizer, template):
    any_tokenizer.chat_template = TEMPLATES[template]
    rendered = 0
    for name, example in {**EXAMPLES, **PARTS}.items():
        for tools in (None, TOOLS):
            before = copy.deepcopy(example)
            wanted = outcome(trl.apply_chat_template, copy.deepcopy(example), any_tokenizer, tools)
            assert outcome(sftcore.apply_chat_template, example, any_tokenizer, tools) == wanted, name
            assert example == before
            rendered += wanted != "raised"
    assert rendered > 25


role = st.sampled_from(["system", "user", "assistant", "tool"])
turn = st.fixed_dictionaries({"role": role, "content": st.text(max_size=12)})
talk = st.lists(turn, min_size=1, max_size=5)


@given(
    example=st.one_of(
        st.fixed_dictionaries({"messages": talk}),
        st.fixed_dictionaries({"prompt": talk}),
        st.fixed_dictionaries({"prompt": talk, "completion": talk}),
        st.fixed_dictionaries({"prompt": talk, "completion": talk, "label": st.booleans()}),
        st.fixed_dictionaries({"prompt": talk, "chosen": talk, "rejected": talk}),
        st.fixed_dictionaries({"chosen": talk, "rejected": talk}),
        st.fixed_dictionaries({"prompt": talk, "rejected": talk}),
        st.fixed_dictionaries({"chosen": st.text(), "rejected": st.text()}),
        st.fixed_dictionaries({"prompt": st.text(), "completion": st.text()}),
        st.fixed_dictionaries({"text": st.text()}),
    ),
    tools=st.sampled_from([None, [], TOOLS]),
)
@settings(deadline=None, max_examples=150)
def test_whatever_the_conversation_chatml_renders_it_as_trl_does(any_tokenizer, example, tools):
    any_tokenizer.chat_template = CHATML
    ours = outcome(sftcore.maybe_apply_chat_template, example, any_tokenizer, tools)
    assert ours == outcome(trl.maybe_apply_chat_template, copy.deepcopy(example), any_tokenizer, tools)


def test_arguments_of_the_call_win_over_those_of_the_row(any_tokenizer):
    any_tokenizer.chat_template = "{{ mood }}{{ messages[0].content }}"
    row = {"messages": [user("!")], "chat_template_kwargs": {"mood": "glad"}}
    assert sftcore.apply_chat_template(row, any_tokenizer) == {"text": "glad!"}
    assert sftcore.apply_chat_template(row, any_tokenizer, mood="sad") == {"text": "sad!"}


def test_what_arrow_filled_with_null_does_not_reach_the_template(any_tokenizer):
    any_tokenizer.chat_template = "{% for m in messages %}{{ m.keys() | list }}{{ m.tool_calls }}{% endfor %}"
    calls = [{"function": {"name": "f", "arguments": {"x": "1"}}}, {"function": {"name": "g", "arguments": {"y": "2"}}}]
    talk = [user("a"), assistant("b", tool_calls=calls)]
    rows = Dataset.from_list([{"messages": talk, "prompt": None}, {"messages": None, "prompt": [user("c")]}])
    assert rows[0]["messages"][0]["tool_calls"] is None
    assert sftcore.apply_chat_template(rows[0], any_tokenizer) == {
        "text": f"['content', 'role']['content', 'role', 'tool_calls']{calls}"
    }


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ({"prompt": [user("a")], "chosen": [assistant("b")]}, 'the row has the columns "prompt", "chosen". Rename'),
        ({"completion": [assistant("b")]}, 'the row has the columns "completion". Rename'),
        ({"prompt": [SYSTEM]}, 'ends with a message of the role "system", which the model cannot answer'),
        ({"messages": "Hi"}, "needs lists of messages, got str"),
    ],
)
def test_rows_that_no_template_takes_are_refused_with_what_they_have(any_tokenizer, example, said):
    with pytest.raises(DataError, match=said):
        sftcore.apply_chat_template(example, any_tokenizer)


@pytest.mark.parametrize(
    "example",
    [
        *EXAMPLES.values(),
        {"prompt": "a"},
        {"prompt": "a", "completion": "b"},
        {"text": "a"},
        {},
        {"messages": [{"content": "a"}]},
        {"messages": ["a"]},
        {"conversations": [user("a")]},
        {"conversations": [{"from": "human", "value": "a"}]},
        {"conversations": [{"from": "human"}]},
        {"conversations": "a"},
        {"chosen": [user("a")], "rejected": [user("b")]},
    ],
)
def test_conversations_are_recognised_as_trl_recognises_them(example):
    assert sftcore.is_conversational(example) is trl.is_conversational(example)
    assert sftcore.is_conversational_from_value(example) is trl.is_conversational_from_value(example)


def test_no_rows_and_nulls_are_no_conversations():
    assert not sftcore.is_conversational({"messages": []})
    assert not sftcore.is_conversational_from_value({"conversations": []})
    assert sftcore.is_conversational({"prompt": None, "messages": [user("a")]})


@pytest.mark.parametrize(
    "example",
    [
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0}], "id": 3},
        {"prompt": [{"from": "user", "value": "a"}], "completion": [{"from": "assistant", "value": "b"}]},
        {"messages": [user("a")], "tools": "[]"},
        {"conversations": "a"},
        {"conversations": ["a", {"from": "user", "value": "b"}]},
        {"text": "a"},
    ],
)
def test_chatml_conversion_gives_what_trl_gives_and_leaves_its_argument_alone(example):
    before = copy.deepcopy(example)
    assert sftcore.maybe_convert_to_chatml(example) == trl.maybe_convert_to_chatml(copy.deepcopy(example))
    assert example == before


# --- Images ---------------------------------------------------------------------------------------------------------
PLACE = {"type": "image"}
TEXT = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    ("messages", "images"),
    [
        ([user("a"), assistant("b")], ["one"]),
        ([SYSTEM, user("a"), assistant("b"), user("c")], ["one", "two"]),
        ([user("a")], None),
        ([user("a"), CALL, ANSWER, assistant("b")], ["one"]),
        ([{"role": "user", "content": [PLACE, TEXT, PLACE]}, user("b")], ["one", "two"]),
        ([{"role": "user", "content": [{"type": "image", "image": "kept"}, TEXT]}], []),
        ([{"role": "user", "content": [{"type": "image", "image": "kept"}, PLACE, TEXT]}], ["new"]),
        ([user("a"), {"role": "assistant", "content": None, "tool_calls": []}], ["one"]),
        ([{"role": "tool", "content": [PLACE]}, user("a")], ["one"]),
        ([{"role": "user", "content": [TEXT]}], ["one"]),
        ([assistant("a")], ["one"]),
        ([{"role": "bot", "content": "a"}], None),
    ],
)
def test_images_find_their_places_as_in_trl(messages, images):
    before = copy.deepcopy(messages)
    ours = outcome(sftcore.prepare_multimodal_messages, messages, images)
    assert ours == outcome(trl.prepare_multimodal_messages, copy.deepcopy(messages), images)
    assert messages == before


def test_too_many_images_are_counted_against_the_places():
    with pytest.raises(DataError, match="2 images are given, but the messages have 1 placeholders"):
        sftcore.prepare_multimodal_messages([{"role": "user", "content": [PLACE]}], ["one", "two"])


# --- Templates ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_that_print_tools_are_those_that_trl_finds(any_tokenizer, template):
    any_tokenizer.chat_template = TEMPLATES[template]
    assert sftcore.supports_tool_calling(any_tokenizer) is trl.supports_tool_calling(any_tokenizer)
    assert has_generation_markers(TEMPLATES[template]) is trl_templates.has_generation_markers(TEMPLATES[template])


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED, TEMPLATES["qwen3"], TEMPLATES["llama3"]])
def test_no_other_template_is_needed_for_training(any_tokenizer, template):
    any_tokenizer.chat_template = template
    assert sftcore.get_training_chat_template(any_tokenizer) is None
    with pytest.warns(FutureWarning, match="The argument tokenizer is now called processing_class"):
        assert sftcore.get_training_chat_template(tokenizer=any_tokenizer) is None
    assert any_tokenizer.chat_template == template


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}"])
def test_a_template_that_cannot_be_trained_on_is_refused_with_the_reason(any_tokenizer, template):
    any_tokenizer.chat_template = template
    assert not sftcore.supports_tool_calling(any_tokenizer)
    with pytest.raises(
        ModelError, match=r"the chat template cannot be trained on: .*(no chat template|rewrites|leaves)"
    ):
        sftcore.get_training_chat_template(any_tokenizer)


# --- Packing --------------------------------------------------------------------------------------------------------
def token_rows(lengths: list[int]) -> dict[str, list[list[int]]]:
    """Rows of these lengths in which no token id stands twice; labels are the ids + 1."""
    first = [sum(lengths[:i]) for i in range(len(lengths))]
    ids = [list(range(start, start + length)) for start, length in zip(first, lengths, strict=True)]
    return {"input_ids": ids, "labels": [[token + 1 for token in row] for row in ids]}


def pieces(packed: list[dict]) -> list[list[int]]:
    """The documents of all blocks, each checked to be of neighbouring tokens with their labels; sorted."""
    found = []
    for block in packed:
        assert sum(block["seq_lengths"]) == len(block["input_ids"])
        assert block["labels"] == [token + 1 for token in block["input_ids"]]
        start = 0
        for length in block["seq_lengths"]:
            document = block["input_ids"][start : start + length]
            assert document == list(range(document[0], document[0] + length))
            found.append(document)
            start += length
    return sorted(found)


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    seq_length=st.integers(1, 30),
    strategy=st.sampled_from(["bfd", "bfd_split", "wrapped"]),
)
@settings(deadline=None, max_examples=40)
def test_blocks_hold_the_documents_that_trls_blocks_hold_and_are_as_full(lengths, seq_length, strategy):
    dataset = Dataset.from_dict(token_rows(lengths), features=FEATURES)
    ours = list(sftcore.pack_dataset(dataset, seq_length, strategy))
    theirs = list(trl.pack_dataset(dataset, seq_length, strategy)) if sum(lengths) else []
    if strategy == "wrapped":
        assert [block["input_ids"] for block in ours] == [block["input_ids"] for block in theirs]
        assert [token for piece in pieces(ours) for token in piece] == list(range(sum(lengths)))
        return
    assert pieces(ours) == pieces(theirs)
    fill = [sorted(len(block["input_ids"]) for block in blocks) for blocks in (ours, theirs)]
    assert fill[0] == fill[1]


FEATURES = datasets.Features(dict.fromkeys(["input_ids", "labels"], datasets.Sequence(datasets.Value("int64"))))


def test_packing_sees_the_whole_set_where_trl_sees_a_thousand_rows():
    lengths = [7] * 1000 + [3] * 1000
    dataset = Dataset.from_dict(token_rows(lengths))
    assert len(sftcore.pack_dataset(dataset, 10)) == 1000
    assert len(trl.pack_dataset(dataset, 10)) > 1300


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_a_stream_is_packed_a_thousand_rows_at_a_time(strategy):
    read = []

    def rows():
        columns = token_rows([3] * 2500)
        for i, (ids, labels) in enumerate(zip(columns["input_ids"], columns["labels"], strict=True)):
            read.append(i)
            yield {"input_ids": ids, "labels": labels}

    stream = sftcore.pack_dataset(IterableDataset.from_generator(rows), 10, strategy)
    assert next(iter(stream))["input_ids"][:3] == [0, 1, 2]
    assert len(read) < 1500
    blocks = list(stream)
    assert sorted(token for block in blocks for token in block["input_ids"]) == list(range(7500))
    assert all(isinstance(block["input_ids"], list) for block in blocks)


@pytest.mark.parametrize("kind", [DatasetDict, IterableDatasetDict])
def test_each_member_of_a_dictionary_is_packed_by_itself(kind):
    one = Dataset.from_dict(token_rows([3, 3, 4]))
    sets = {"train": one, "test": one.select([0])}
    if kind is IterableDatasetDict:
        sets = {name: member.to_iterable_dataset() for name, member in sets.items()}
    packed = sftcore.pack_dataset(kind(sets), 10)
    assert type(packed) is kind
    assert [[len(block["input_ids"]) for block in packed[name]] for name in packed] == [[10], [3]]


def test_the_older_name_of_a_strategy_says_its_new_one():
    dataset = Dataset.from_dict(token_rows([5]))
    with pytest.warns(FutureWarning, match='"bfd-requeue" is now called "bfd_split"'):
        packed = sftcore.pack_dataset(dataset, 3, "bfd-requeue")
    assert packed["seq_lengths"][:] == [[3], [2]]


def test_selected_rows_formats_and_arguments_of_map_are_honoured():
    dataset = Dataset.from_dict(token_rows([2, 9, 3])).select([0, 2]).with_format("torch", columns=["input_ids"])
    packed = sftcore.pack_dataset(dataset, 5, map_kwargs={"num_proc": 2, "load_from_cache_file": False})
    assert packed.format["type"] == "torch"
    assert packed.format["columns"] == ["input_ids", "seq_lengths"]
    assert packed[0]["input_ids"].tolist() == [11, 12, 13, 0, 1]
    assert packed.with_format(None)[0]["labels"] == [12, 13, 14, 1, 2]


def test_a_set_of_empty_rows_gives_no_blocks():
    packed = sftcore.pack_dataset(Dataset.from_dict(token_rows([0, 0]), features=FEATURES), 4)
    assert len(packed) == 0
    assert "seq_lengths" in packed.column_names


def test_what_cannot_be_packed_is_refused_by_its_column():
    rows = token_rows([2, 3])
    with pytest.raises(
        TypeError, match='the column "text" cannot be packed, because it contains string instead of lists'
    ):
        sftcore.pack_dataset(Dataset.from_dict({**rows, "text": ["a", "b"]}), 4)
    with pytest.raises(DataError, match='the columns "input_ids" and "mask" have different lengths'):
        sftcore.pack_dataset(Dataset.from_dict({**rows, "mask": [[1], [1]]}), 4)
    with pytest.raises(OptionTypeError, match=r'"bfb" is not known\. Did you mean "bfd"'):
        sftcore.pack_dataset(Dataset.from_dict(rows), 4, "bfb")
    with pytest.raises(OptionTypeError, match="got list"):
        sftcore.pack_dataset([rows], 4)


def test_columns_of_streams_are_read_from_the_first_row():
    stream = IterableDataset.from_generator(lambda: iter([{"a": 1, "b": 2}]))
    assert stream.column_names is None
    for dataset in (stream, Dataset.from_list([{"a": 1, "b": 2}])):
        assert data_utils.get_dataset_column_names(dataset) == ["a", "b"]
        assert data_utils.get_dataset_column_names(dataset) == trl_data.get_dataset_column_names(dataset)
