"""Templates, rows and lengths of any kind: texts, tokens and blocks that add up, or one of our own errors."""

from __future__ import annotations

import copy
import math
import re
import warnings

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import _compile_jinja_template

from sftcore.chat.sandbox import limits
from sftcore.chat.template import ChatTemplate, SpecialTexts
from sftcore.core.errors import OptionTypeError, SFTCoreError, TemplateStoppedError
from sftcore.data.packing.pack import pack
from tests.conftest import CHATML_MARKED, make_tokenizer
from tests.data.test_pipeline import preparation
from tests.fuzz.fuzz_profile import fuzzed

pytestmark = pytest.mark.slow

SPECIAL = SpecialTexts(["<|im_end|>"], [], "<|im_end|>")
ChatTemplate("x", {}, SPECIAL)  # imports much of transformers, for which no example should be held to account

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
    before, limits.SECONDS = limits.SECONDS, 0.5
    try:
        template = ChatTemplate(source, {"eos_token": "<|im_end|>"}, SPECIAL)
        for marked in (False, True):
            text = template.render_marked(TURNS, None, {})[0] if marked else template.render(TURNS, None, {}, False)
            assert isinstance(text, str)
    except SFTCoreError:
        pass
    finally:
        limits.SECONDS = before
    assert TURNS[0]["content"] == "say hello"


# Templates of a grammar, which nearly all compile: what is written has to be what transformers writes.
texts_of_templates = st.sampled_from(["", "a", "<|im_start|>", "\n", "{", "ß é", "{0}", "%s", " x "])
names = st.sampled_from(["m.content", "m['role']", "messages", "messages[0].content", "x", "ns.x", "loop.index0",
                         "add_generation_prompt", "tools", "eos_token", "nope", "nope.more"])  # fmt: skip
literals = st.one_of(
    texts_of_templates.map(repr), st.integers(-3, 99).map(str), st.sampled_from(["true", "none", "1.5"])
)
FILTERS = st.sampled_from(
    ["trim", "tojson", "tojson(indent=2)", "length", "string", "list", "upper", "title", "first", "last", "join", "e",
     "join('-')", "replace('a', 'bb')", "default('d')", "center(9)", "indent(2)", "batch(2)|list", "slice(2)|list",
     "int", "unique|list", "sort", "reverse|list", "map('upper')|list", "map('trim')|select|list",
     "items|list", "selectattr('role', 'equalto', 'user')|list", "rejectattr('content')|list", "sum", "round(1)",
     "truncate(3)", "int(7, 16)", "float", "abs", "capitalize", "wordcount", "dictsort",
     "groupby('role')|list", "format(1)", "trim('s')", "lower", "join('-', attribute='role')", "reverse|join",
     "map(attribute='role')|join", "map('list')|sum(start=[])", "sum(attribute='role')", "safe", "max", "min",
     "tojson(ensure_ascii=true)", "tojson(indent=1, separators=(',', ':'))", "sort(attribute='role')"]
)  # fmt: skip
METHODS = st.sampled_from(
    [".strip()", ".strip('s')", ".lstrip('\\n')", ".rstrip()", ".split()", ".split(' ')[-1]", ".rsplit('l', 1)",
     ".startswith('s')", ".endswith('o')", ".upper()", ".replace('s', 'tt')", ".find('e')", ".rfind('l')",
     ".join('ab')", ".format(1)", ".items()", ".get('role')", ".count('l')", ".zfill(9)", ".partition('a')",
     ".removesuffix('o')",
     ".get('role', 'x')", ".keys()|list", ".lower()", ".rpartition('l')", ".rsplit('l')", ".format(m)", ".copy()",
     ".splitlines()", ".expandtabs(2)", "[::-1]", "[-1]", "[1:]", "['content']", ".title"]
)  # fmt: skip
OPERATORS = st.sampled_from(["+", "~", "*", "%", "//", "-", "==", "<", "in", "not in", "and", "or", "is sameas"])
expressions = st.recursive(
    names | literals,
    lambda inner: st.one_of(
        st.builds("({}|{})".format, inner, FILTERS),
        st.builds("({}){}".format, inner, METHODS),
        st.builds("({} {} {})".format, inner, OPERATORS, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{{'k': {}}}".format, inner),
        st.builds("({} is {})".format, inner, st.sampled_from(["defined", "string", "none", "mapping", "iterable"])),
    ),
    max_leaves=6,
)
programs = st.recursive(
    st.one_of(
        texts_of_templates.filter(lambda text: "{" not in text),
        expressions.map(lambda one: f"{{{{ {one} }}}}"),
        expressions.map(lambda one: f"{{%- set x = {one} %}}"),
        expressions.map(lambda one: f"{{% set ns.x = {one} -%}}"),
        expressions.map(lambda one: f"{{% set x %}}a{{{{ {one} }}}}{{% endset %}}"),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.builds("{{% for m in messages %}}{}{{% endfor %}}".format, inner),
        st.builds("{{% for i in range(3) %}}{}{{{{ i }}}}{{% endfor %}}".format, inner),
        st.builds("{{% if {} %}}{}{{% else %}}{}{{% endif %}}".format, expressions, inner, inner),
        st.builds("{{% macro f(x) %}}{}{{% endmacro %}}{{{{ f({}) }}}}".format, inner, expressions),
        st.builds("{{% generation %}}{}{{% endgeneration %}}".format, inner),
        st.builds("{{% filter upper %}}{}{{% endfilter %}}".format, inner),
    ),
    max_leaves=8,
)
_SHOWS_MORE = re.compile(r"Namespace|object|function|method|Macro|LoopContext|Undefined|generator")
"""How Python shows what is no data is not compared."""


def transformers_writes(source):
    """What it writes, or None where it refuses."""
    try:
        return _compile_jinja_template(source).render(
            messages=copy.deepcopy(TURNS), tools=None, documents=None, add_generation_prompt=False, eos_token="</s>"
        )
    except Exception:  # Jinja's and Python's, of many kinds
        return None


@fuzzed(150)
@given(programs)
@example("{{ ('ab'|list) ~ ('0x1f'|int(7, 16)) }}")
@example("{% set x %}{{ messages|map('upper') }}{% endset %}{{ x|trim('s') }}")
@example("{{ 0|sum(attribute='role') }}")
@example("{{ messages|indent(2) }}")
def test_a_template_writes_what_transformers_writes(program):
    source = "{% set ns = namespace(x='a') %}{% set x, m = 'b', messages[0] %}" + program
    before, limits.SECONDS = limits.SECONDS, 0.5
    try:
        template = ChatTemplate(source, {"eos_token": "</s>"}, SPECIAL)
        written = template.render(TURNS, None, {}, False)
        marked, marks = template.render_marked(TURNS, None, {})
    except TemplateStoppedError:
        return
    except SFTCoreError as error:
        # a slice of a number or a mapping is refused; where that is a constant, Jinja writes nothing instead
        refused = "not subscriptable" in str(error) or "unhashable type: 'slice'" in str(error)
        assert refused or transformers_writes(source) is None
        return
    finally:
        limits.SECONDS = before
    assert TURNS == [{"role": "user", "content": "say hello"}, {"role": "assistant", "content": "hello"}]
    theirs = transformers_writes(source)
    # whether two equal constants are one object is Python's affair, which compiles them together or apart
    if "sameas" not in program and not any(map(_SHOWS_MORE.search, (written, theirs or ""))):
        assert written == marked == theirs
    # markers inside a macro or a captured text count where they were written, which may be nowhere
    assert all(start <= end for start, end in marks)


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
weighted = st.lists(st.tuples(st.integers(0, 299), st.sampled_from([0.0, 0.5, 1.0])), max_size=9).map(
    lambda pairs: {"input_ids": [token for token, _ in pairs], "weights": [weight for _, weight in pairs]}
)
sets = st.one_of(*(st.lists(rows, min_size=1, max_size=6) for rows in (chats, texts, completions, ids, weighted)))
SETTINGS = st.fixed_dictionaries(
    {
        "packing": st.booleans(),
        "packing_strategy": st.sampled_from(["bfd", "bfd_split", "wrapped"]),
        "assistant_only_loss": st.sampled_from([False, False, True]),
        "completion_only_loss": st.sampled_from([None, None, True, False]),
        "long_rows": st.sampled_from(["cut", "cut", "drop", "refuse"]),
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
    if "weights" in prepared.column_names:
        for row in prepared:
            assert len(row["weights"]) == len(row["input_ids"])
            assert all(0 <= weight <= 1 for weight in row["weights"])


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


@fuzzed(200)
@given(
    st.lists(st.integers(0, 5), max_size=5),
    st.integers(-5, 3),
    st.sampled_from(["bfd", "bfd_split", "wrapped"]) | st.text(max_size=8),
)
@example([1], 0, "bfd")
@example([1], 1, "bdf")
@example([], 1, "wrapped")
def test_a_packer_refuses_what_makes_no_sense_and_nothing_else(lengths, capacity, strategy):
    if strategy not in ("bfd", "bfd_split", "wrapped"):
        with pytest.raises(OptionTypeError, match="is not known"):
            pack(lengths, capacity, strategy)
    elif capacity < 1:
        with pytest.raises(OptionTypeError, match=f"a block of {capacity} tokens"):
            pack(lengths, capacity, strategy)
    else:
        kept = [min(length, capacity) if strategy == "bfd" else length for length in lengths]
        assert pack(lengths, capacity, strategy).num_tokens == sum(kept)
