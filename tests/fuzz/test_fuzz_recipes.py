"""Recipes of any text and any values: a recipe, or one of our own errors."""

from __future__ import annotations

import contextlib
import warnings

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sftcore import yamlio
from sftcore.errors import RecipeError, SFTCoreError
from sftcore.recipe import load_recipe, parse_recipe
from sftcore.run.setup import set_up_recipe
from tests.fuzz.fuzz_profile import fuzzed

WORDS = [
    "model", "data", "adapter", "lora", "format", "chat", "auto", "loss", "block", "kernel", "attention", "r",
    "train", "eval", "eval_fraction", "name", "init_kwargs", "learning_rate", "max_steps", "seed", "packing",
    "resume_from_checkpoint", "plugins", "none", "true", "null", "1e-4", "0x1f", "-3", ".inf", ".nan", "", "é",
]  # fmt: skip
MARKS = [
    ": ", ":", "\n", "\n  ", "- ", "{", "}", "[", "]", ", ", "&a ", "*a", "!!python/name:os ", "!!set ", "!!omap ",
    "!!binary ", "!!int ", "!!float ", "!!bool ", "!!timestamp ", "!x ", "? ", "<<: ", "|\n ", ">-\n ", "'", '"', "#",
    "---\n", "...\n", "%YAML 1.2\n", "%TAG ! x\n", "\t", "\\x", "@", "`", "\ufeff", "9" * 5000, "[" * 300, "{a: " * 300,
]  # fmt: skip
scalars = st.one_of(st.sampled_from(WORDS), st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
keys = st.sampled_from(WORDS) | scalars
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@fuzzed(300)
@given(st.lists(st.sampled_from(WORDS + MARKS), max_size=30).map("".join) | st.text(max_size=60))
@example("a: !!timestamp nonsense")  # AttributeError in PyYAML
@example("? [1]\n: x")  # TypeError: a list is no key
@example("seed: " + "9" * 5000)  # ValueError of int()
@example("a: &a [*a]")
@example("!!int ''")
@example("!!bool nonsense")
@example("!!float ''")
@example("- !!omap [1]")
def test_any_text_is_yaml_or_refused(text):
    with contextlib.suppress(RecipeError):
        yamlio.load(text, where="recipe.yaml")


@fuzzed(300)
@given(st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=8), values, max_size=6), values, values)
@example({"adapter": {"lora": {"r": []}}}, "m", "d")
@example({"block": {"a": None}}, "m", "d")
def test_any_values_are_a_recipe_or_refused(rest, model, data):
    raw = {"model": model, "data": data, **rest}
    with contextlib.suppress(SFTCoreError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_up_recipe(parse_recipe(raw))


@fuzzed(200)
@given(st.lists(st.lists(st.sampled_from([*WORDS, *MARKS, "=", "."]), max_size=8).map("".join), max_size=4))
@example(["model.name.x=1", "model.name=2"])
@example(["=1"])
@example(["model=m", "data=d", "...=1"])
def test_any_overrides_are_read_or_refused(words):
    with contextlib.suppress(SFTCoreError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_recipe(None, ["model=m", "data=d", *words])


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x00", b"a: \xed\xa0\x80", b"\xef\xbb\xbfmodel: m\ndata: d"])
def test_a_recipe_of_wrong_bytes_is_refused_or_read(content, tmp_path):
    (tmp_path / "r.yaml").write_bytes(content)
    with contextlib.suppress(SFTCoreError):
        load_recipe(tmp_path / "r.yaml")
