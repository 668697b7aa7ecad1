"""Recipes of any text and any values: a recipe, or one of our own errors."""

from __future__ import annotations

import contextlib
import warnings

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sftcore.config import yaml12
from sftcore.config.fields import config_fields
from sftcore.config.recipe import load_recipe, parse_recipe
from sftcore.config.setup import set_up_recipe
from sftcore.core.errors import RecipeError, SFTCoreError
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
        yaml12.load(text, where="recipe.yaml")


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


WHOLE = {
    "model": {"name": "m", "dtype": "auto", "revision": "main", "init_kwargs": {"token": "x"}},
    "data": {"train": "d", "eval": "e"}, "format": "chat",
    "adapter": {"lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["q_proj"]}},
    "attention": "sdpa", "loss": "nll", "noise": {"neftune": {"alpha": 5.0}}, "packing": True, "max_length": 64,
    "learning_rate": 1e-4, "num_train_epochs": 1, "seed": 1, "output_dir": "out", "save_strategy": "steps",
}  # fmt: skip
FIELDS = sorted(config_fields())


def replaced(value, path, new):
    """The value with `new` at this place, which is made where it is not there."""
    if not path:
        return new
    if isinstance(value, dict) and value:
        key = list(value)[path[0] % len(value)]
        return {**value, key: replaced(value[key], path[1:], new)}
    return new


@fuzzed(300)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 20), min_size=1, max_size=4), values), max_size=2),
    st.dictionaries(
        st.sampled_from(FIELDS), values | st.sampled_from([0, -1, 10**30, "auto", "steps", [], {}]), max_size=3
    ),
)
def test_a_whole_recipe_with_anything_in_any_place_is_one_or_is_refused(changes, fields):
    """Every field of the configuration, with values of wrong types, in a recipe that is right otherwise."""
    raw = {**WHOLE, **fields}
    for path, new in changes:
        raw = replaced(raw, path, new)
    with contextlib.suppress(SFTCoreError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_up_recipe(parse_recipe(raw))


def test_the_whole_recipe_is_one():
    assert set_up_recipe(parse_recipe(WHOLE))
