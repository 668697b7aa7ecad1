"""Recipes of any text and any values: a recipe that says what was written, or one of our own errors.

What has to be refused, and what has to be read, is computed here from the documentation and from the real classes.
"""

from __future__ import annotations

import datetime
import json
import types
import typing
import warnings
from typing import Any, Union, get_args, get_origin

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sftcore import SFTConfig
from sftcore.config import yaml12
from sftcore.config.fields import config_fields
from sftcore.config.recipe import load_recipe, parse_recipe
from sftcore.config.setup import set_up_recipe
from sftcore.core.errors import RecipeError, SFTCoreError
from tests.core.test_options import fits
from tests.fuzz.fuzz_profile import fuzzed

pytestmark = pytest.mark.slow

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

KINDS = ["format", "collator", "loader", "attention", "adapter", "kernel", "loss", "noise"]
UNLIKE = ("block", "resume_from_checkpoint", "callbacks", "sample_prompts")
"""Fields that a recipe writes in its own way: lists of names, one of them alone, and true beside a name."""
SIMPLE = (bool, int, float, str, type(None), list, dict)


# --- What must be refused, whoever reads it --------------------------------------------------------------------------
def simple_types() -> dict[str, Any]:
    """Fields of the configuration with plain types; lists and mappings whatever is in them."""
    found = {}
    for name, hint in typing.get_type_hints(SFTConfig).items():
        arms = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else [hint]
        plain = [get_origin(arm) or arm for arm in arms]
        if all(arm in SIMPLE for arm in plain) and name not in ("fsdp", "debug"):  # None is taken, too
            found[name] = Union[tuple(plain)]  # noqa: UP007 - the arms are known at run time only
    return found


TYPES = simple_types()
OF_MODEL = {"name": str, "revision": str, "dtype": str, "init_kwargs": dict[str, Any]}
OF_DATA = {
    "train": str | list[str], "eval": str | list[str] | None, "eval_fraction": float | None, "config": str | None,
    "split": str, "eval_split": str, "streaming": bool,
}  # fmt: skip


def section_faults(section: str, value: Any, known: dict[str, Any], needed: str) -> list[str]:
    """What is wrong with a section that is a mapping of these keys."""
    if not isinstance(value, dict):
        return [f"{section} is not a mapping"]
    faults = [f"{section}.{key} is not known" for key in value if key not in known]
    faults += [
        f"{section}.{key} is not of its type" for key in value if key in known and not fits(value[key], known[key])
    ]
    return faults + ([] if needed in value else [f"{section} has no {needed}"])


def faults_of(raw: dict[str, Any]) -> list[str]:
    """Why a recipe must be refused, as far as its keys and types say so: not all that may be wrong with it."""
    faults = [f"{key} is missing" for key in ("model", "data") if raw.get(key) in (None, "")]
    if not isinstance(raw["model"], str):
        faults += section_faults("model", raw["model"], OF_MODEL, "name")
    data = {"train": raw["data"]} if isinstance(raw["data"], (str, list)) else raw["data"]
    faults += section_faults("data", data, OF_DATA, "train")
    if raw.get("block") and not fits(raw["block"], str | list[str]):
        faults.append("block is not a list of names")
    for key, value in raw.items():
        if key not in FIELDS and key not in ("model", "data", "block", *KINDS):
            faults.append(f"{key} is not known")
        elif key in TYPES and key not in UNLIKE and not fits(value, TYPES[key]):
            faults.append(f"{key} is not of its type")
    return faults


def test_faults_are_found_where_they_are():
    assert faults_of(WHOLE) == []
    assert faults_of({**WHOLE, "max_steps": "3", "lr": 1, "model": {"nam": 1}, "data": 3}) == [
        "model.nam is not known", "model has no name", "data is not a mapping", "max_steps is not of its type",
        "lr is not known",
    ]  # fmt: skip


def assert_read_or_refused(raw: dict[str, Any]) -> None:
    """Set a recipe up: it says what was written, or is refused; and it is refused where it has a fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            recipe = parse_recipe(raw)
            set_up_recipe(recipe)
        except SFTCoreError:
            return
    assert faults_of(raw) == []
    said = {key: value for key, value in raw.items() if key in FIELDS and key not in UNLIKE}
    assert repr({key: recipe.training[key] for key in said}) == repr(said)  # nan equals nothing
    assert recipe.model.name == (raw["model"] if isinstance(raw["model"], str) else raw["model"]["name"])
    train = raw["data"]["train"] if isinstance(raw["data"], dict) else raw["data"]
    given = tuple(train) if isinstance(train, list) else train
    # a list of one hub id is that source
    assert recipe.data.train in ([given, given[0]] if isinstance(train, list) and len(train) == 1 else [given])


# --- YAML ------------------------------------------------------------------------------------------------------------
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
    try:
        value = yaml12.load(text, where="recipe.yaml")
    except RecipeError:
        return
    assert is_plain(value)


def is_plain(value: Any) -> bool:
    """Whether a value is of the kinds that YAML has without tags of a program: no object, no code."""
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    if isinstance(value, (list, set, tuple)):
        return all(map(is_plain, value))
    return type(value) in (str, int, float, bool, type(None), bytes, datetime.date, datetime.datetime)


readable = st.text(st.characters(min_codepoint=32, exclude_categories=("C", "Zl", "Zp")), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | readable,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(readable, inner, max_size=4),
    max_leaves=12,
)


@fuzzed(300)
@given(json_values)
@example({"seed": 10, "share": 1e-07, "big": 1e16, "text": "1e-4", "no": "no", "null": None})
def test_json_is_read_as_json(value):
    """JSON is YAML 1.2, and Python reads it too."""
    found = yaml12.load(json.dumps(value, ensure_ascii=False), where="recipe.yaml")
    assert json.dumps(found) == json.dumps(value)  # 1 is not 1.0, nor True


@fuzzed(300)
@given(st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=8), values, max_size=6), values, values)
@example({"adapter": {"lora": {"r": []}}}, "m", "d")
@example({"block": {"a": None}}, "m", "d")
def test_any_values_are_a_recipe_or_refused(rest, model, data):
    assert_read_or_refused({"model": model, "data": data, **rest})


@fuzzed(200)
@given(st.lists(st.lists(st.sampled_from([*WORDS, *MARKS, "=", "."]), max_size=8).map("".join), max_size=4))
@example(["model.name.x=1", "model.name=2"])
@example(["=1"])
@example(["model=m", "data=d", "...=1"])
def test_any_overrides_are_read_or_refused(words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            recipe = load_recipe(None, ["model=m", "data=d", *words])
        except SFTCoreError:
            return
    assert all(word.partition("=")[0].strip() and "=" in word for word in words)
    assert faults_of(dict(recipe.raw)) == []


@fuzzed(100)
@given(st.dictionaries(st.sampled_from(["max_steps", "seed", "save_steps"]), st.integers(1, 10**9)), readable)
def test_overrides_that_are_right_are_read(numbers, name):
    words = [f"{key}={number}" for key, number in numbers.items()]
    recipe = load_recipe(None, ["model=m", "data=d", f"run_name={json.dumps(name, ensure_ascii=False)}", *words])
    assert recipe.training == {"run_name": name, **numbers}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x00", b"a: \xed\xa0\x80"])
def test_a_recipe_of_wrong_bytes_is_refused(content, tmp_path):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(tmp_path / "r.yaml")


def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfmodel: m\ndata: d")
    assert load_recipe(tmp_path / "r.yaml").model.name == "m"


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
    assert_read_or_refused(raw)


@fuzzed(300)
@given(st.sampled_from(sorted(TYPES)), scalars)
@example("max_steps", True)
@example("learning_rate", "1e-4")
@example("seed", 1.0)
def test_one_field_of_any_type_in_a_whole_recipe_is_read_or_refused(name, value):
    assert_read_or_refused({**WHOLE, name: value})


def test_the_whole_recipe_is_one():
    assert set_up_recipe(parse_recipe(WHOLE))
    assert_read_or_refused(WHOLE)


RIGHT = {
    "max_steps": st.integers(1, 10**6), "learning_rate": st.floats(1e-9, 1), "seed": st.integers(0, 2**32 - 1),
    "packing": st.booleans(), "max_length": st.none() | st.integers(2, 10**5), "run_name": st.none() | readable,
    "logging_steps": st.integers(1, 100), "save_strategy": st.sampled_from(["no", "steps", "epoch"]),
}  # fmt: skip


@fuzzed(200)
@given(
    st.fixed_dictionaries({}, optional=RIGHT),
    st.sampled_from(["m", "owner/m", {"name": "m"}, {"name": "m", "revision": "v1", "init_kwargs": {"a": [1]}}]),
    st.sampled_from(["d.jsonl", ["a.jsonl", "b.jsonl"], {"train": "d"}, {"train": ["d"], "eval_fraction": 0.5}]),
    st.sampled_from([{}, {"adapter": "lora"}, {"adapter": {"lora": {"r": 2}}}, {"block": "kernel:x"}, {"loss": "dft"}]),
)
def test_a_recipe_that_is_right_is_read_as_it_is_written(fields, model, data, more):
    raw = {"model": model, "data": data, **more, **fields}
    recipe = parse_recipe(raw)
    assert recipe.training == fields
    assert recipe.model.name == (model["name"] if isinstance(model, dict) else model)
    assert [(one.kind, one.name) for one in recipe.chosen] == [
        (kind, next(iter(chosen)) if isinstance(chosen, dict) else chosen)
        for kind, chosen in more.items()
        if kind != "block"
    ]
    assert recipe.block == (("kernel:x",) if more == {"block": "kernel:x"} else ())
