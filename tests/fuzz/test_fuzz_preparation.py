"""Templates, rows and lengths of any kind: texts, tokens and blocks that add up, or one of our own errors."""

from __future__ import annotations

import contextlib
import math
import warnings

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import example, given
from hypothesis import strategies as st

from sftcore.data import watchdog
from sftcore.data.pack import pack
from sftcore.data.templates import ChatTemplate, SpecialTexts
from sftcore.errors import SFTCoreError
from tests.conftest import CHATML, CHATML_MARKED, make_tokenizer
from tests.data.test_prepare import preparation
from tests.fuzz.fuzz_profile import fuzzed

SPECIAL = SpecialTexts(["<|im_end|>"], [], "<|im_end|>")

# --- Templates --------------------------------------------------------------------------------------------------------
PARTS = [
    "{{ ", " }}", "{% ", " %}", "{%- ", "-%}", "{# ", " #}", "for m in messages", "endfor", "if m.role == 'user'",
    "else", "elif m", "endif", "set x = ", "set ns.x = ", "set ns = namespace(x=1)", "endset", "set x",
    "macro f(a, b=2)", "endmacro", "f(1)", "f(x, x)", "call(a) f(1)", "endcall", "m.content", "m['role']", "messages",
    "messages[0]", "messages[-1:]", "x", "ns.x", "loop.index0", "loop.first", "range(9)", "range(99999)", " + ",
    " ~ ", " * ", " ** ", " % ", " // ", " - ", "|trim", "|tojson", "|tojson(indent=9)", "|join(', ')",
    "|replace('a', 'b')", "|length", "|string", "|list", "|upper", "|center(99)", "|center(99999999)",
    "|map(attribute='role')", "|items", "|default('x')", "|first", "|batch(3)", "|round(2)", "|indent(4)",
    "|format(1)", "|selectattr('role')", "|sum", ".strip()", ".split()", ".format(1)", ".format(**m)", ".center(9)",
    ".join(messages)", ".items()", ".replace('a', x)", ".__class__", ".get('role')", ".upper", "'abc'", "'%s'",
    "'{}'", "'a' * 99", "99", "9999999999", "1.5", "none", "true", "[x, x]", "{'a': x}", "(x, 1)", " in ",
    " is defined", " if x else ", " and ", "not ", "raise_exception('no')", "strftime_now('%Y')", "generation",
    "endgeneration", "break", "continue", "dict(a=x)", "namespace(a=x)", "\n", "text", "<|im_end|>", "{", "}",
    "varargs", "self", "block b", "include 'x'", "filter upper", "endfilter", "with a = x", "endwith",
]  # fmt: skip
statements = st.lists(st.sampled_from(PARTS), max_size=4).map("".join)
pieces = st.one_of(
    statements.map(lambda inner: "{{ " + inner + " }}"),
    statements.map(lambda inner: "{% set x = " + inner + " %}"),
    statements.map(lambda inner: "{% for m in messages %}{{ " + inner + " }}{% set x = m.content %}{% endfor %}"),
    statements.map(lambda inner: "{% for i in range(99) %}{% set ns.x = " + inner + " %}{% endfor %}"),
    st.sampled_from(PARTS),
)  # fmt: skip
templates = st.lists(pieces, min_size=1, max_size=5).map(
    lambda parts: "{% set ns = namespace(x='a') %}" + "".join(parts)
)
TURNS = [{"role": "user", "content": "say hello"}, {"role": "assistant", "content": "hello"}]


@fuzzed(400)
@given(templates)
@example("{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}")
def test_any_template_gives_a_text_or_is_refused(source):
    before, watchdog.SECONDS = watchdog.SECONDS, 0.5
    try:
        template = ChatTemplate(source, {"eos_token": "<|im_end|>"}, SPECIAL)
        for marked in (False, True):
            text = template.render_marked(TURNS, None, {})[0] if marked else template.render(TURNS, None, {}, False)
            assert isinstance(text, str)
    except SFTCoreError:
        pass
    finally:
        watchdog.SECONDS = before
    assert TURNS[0]["content"] == "say hello"


# --- Rows -------------------------------------------------------------------------------------------------------------
words = st.text(max_size=12) | st.sampled_from(
    ["<|im_end|>", "<|im_start|>user\n", "{{ x }}", " ", "\n", "\x00", "q7z00000zq"]
)
roles = st.sampled_from(["system", "user", "assistant", "tool", "human", "", "x"])
messages = st.fixed_dictionaries({"role": roles, "content": words | st.none()})
chats = st.lists(messages, min_size=1, max_size=5).map(lambda turns: {"messages": turns})
texts = st.fixed_dictionaries({"text": words})
completions = st.fixed_dictionaries({"prompt": words, "completion": words})
ids = st.fixed_dictionaries({"input_ids": st.lists(st.integers(0, 299), max_size=9)})
sets = st.one_of(*(st.lists(rows, min_size=1, max_size=6) for rows in (chats, texts, completions, ids)))
SETTINGS = st.fixed_dictionaries(
    {
        "packing": st.booleans(),
        "packing_strategy": st.sampled_from(["bfd", "bfd_split", "wrapped"]),
        "assistant_only_loss": st.sampled_from([False, False, True]),
        "completion_only_loss": st.sampled_from([None, None, True, False]),
        "truncation_mode": st.sampled_from(["keep_start", "keep_end"]),
        "dataset_cache": st.just(False),
    }
)


@pytest.fixture(scope="module")
def tokenizers():
    return [make_tokenizer(), make_tokenizer(template=CHATML_MARKED, bos=True)]


@fuzzed(60)
@given(rows=sets, fields=SETTINGS, length=st.none() | st.integers(1, 40), which=st.integers(0, 1))
@example(
    rows=[{"messages": [{"role": "user", "content": "q7z00000zq"}]}], fields={"packing": False}, length=None, which=0
)
def test_rows_of_any_kind_are_kept_counted_or_refused(tokenizers, rows, fields, length, which):
    """What is kept, cut and dropped is all there was: by the ledger, and counted by hand."""
    data = preparation(tokenizers[which], max_length=length, **fields)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prepared = data.prepare(Dataset.from_list(rows), "train")
    except SFTCoreError:
        return
    (ledger,) = data.ledgers
    assert ledger.rows_in == len(rows)
    assert ledger.rows_kept + sum(ledger.dropped.values()) == len(rows)
    numbers = [number for dropped in ledger.dropped_rows.values() for number in dropped]
    assert len(numbers) == len(set(numbers)) == len(rows) - ledger.rows_kept
    tokens = prepared["input_ids"]
    assert ledger.tokens_kept == sum(map(len, tokens))
    if length is not None:
        assert all(len(row) <= length for row in tokens)
    assert CHATML


# --- Packers ----------------------------------------------------------------------------------------------------------
@fuzzed(300)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=60),
    st.integers(1, 30),
    st.sampled_from(["bfd", "bfd_split", "wrapped"]),
)
@example([0], 1, "wrapped")
@example([0, 0], 3, "bfd")
def test_every_token_is_packed_once(lengths, capacity, strategy):
    """Each token of each document is in one block, in order; `bfd` alone loses what is longer than a block."""
    packing = pack(lengths, capacity, strategy)
    seen = [np.zeros(length, int) for length in lengths]
    for document, start, length in zip(packing.documents, packing.starts, packing.lengths, strict=True):
        seen[document][start : start + length] += 1
    for length, counts in zip(lengths, seen, strict=True):
        kept = min(length, capacity) if strategy == "bfd" else length
        assert counts[:kept].tolist() == [1] * kept
        assert not counts[kept:].any()
    for first, last in zip(packing.blocks, packing.blocks[1:], strict=False):
        assert 0 < packing.lengths[first:last].sum() <= capacity
    if strategy == "wrapped":
        assert packing.num_blocks == math.ceil(sum(lengths) / capacity)


@fuzzed(100)
@given(st.lists(st.integers(0, 5), max_size=5), st.integers(-5, 1), st.text(max_size=8))
def test_a_packer_refuses_what_makes_no_sense(lengths, capacity, strategy):
    with contextlib.suppress(SFTCoreError):
        pack(lengths, capacity, strategy)
