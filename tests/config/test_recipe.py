"""Recipes and overrides: what is accepted, and what an error says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftcore import RecipeError
from sftcore.config.probe import model_problems
from sftcore.config.recipe import load_recipe, parse_recipe
from sftcore.config.yaml12 import load
from sftcore.core.errors import SettingsError
from sftcore.core.types import ModelRequest

BASE = "model: some/model\ndata: train.jsonl\n"


def test_numbers_and_booleans_are_those_of_yaml_1_2(write):
    recipe = load_recipe(write("r.yaml", BASE + "learning_rate: 1e-4\neval_strategy: no\nbf16: true\nmax_steps: 10\n"))
    assert recipe.training == {"learning_rate": 1e-4, "eval_strategy": "no", "bf16": True, "max_steps": 10}


def test_numbers_keep_the_base_they_are_written_in():
    assert load("{seed: 010, hex: 0x10, time: 12:30, day: 2024-01-01}", where="r") == {
        "seed": 10, "hex": 16, "time": "12:30", "day": "2024-01-01",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["=", "1_000", "1_0.5", "0b1", "1:30", "yes", "on"])
def test_what_only_yaml_1_1_reads_as_something_else_is_a_text(text):
    assert load(f"a: {text}", where="r") == {"a": text}


def test_a_mapping_may_be_merged_into_others_whatever_the_order_they_are_made_in():
    """PyYAML puts merged keys into the node itself, where they once looked like keys that stand twice."""
    text = "deep: {base: &base {rank: 1, <<: {rank: 2, alpha: 3}}}\nflat: {<<: *base}"
    assert load(text, where="r") == {"deep": {"base": {"rank": 1, "alpha": 3}}, "flat": {"rank": 1, "alpha": 3}}


def test_overrides_reach_inside_and_turn_names_into_mappings(write):
    path = write("r.yaml", BASE + "adapter: lora\n")
    recipe = load_recipe(path, ["adapter.lora.r=8", "data.eval_fraction=0.1", "model.dtype=bfloat16", "max_steps=3"])
    assert recipe.chosen[0].options == {"r": 8}
    assert (recipe.data.train, recipe.data.eval_fraction) == ("train.jsonl", 0.1)
    assert (recipe.model.name, recipe.model.dtype) == ("some/model", "bfloat16")
    assert recipe.raw["max_steps"] == 3


def test_overrides_alone_are_a_recipe():
    recipe = load_recipe(None, ["model=m", "data=[a.jsonl, b.jsonl]", "kernel=[x, y]"])
    assert recipe.data.train == ("a.jsonl", "b.jsonl")
    assert [one.name for one in recipe.chosen] == ["x", "y"]


def test_older_names_work_and_say_their_new_one():
    with pytest.warns(FutureWarning, match="max_seq_length is now max_length"):
        recipe = load_recipe(None, ["model=m", "data=d", "max_seq_length=128"])
    assert recipe.training == {"max_length": 128}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("lerning_rate: 1", 'r.yaml: unknown key "lerning_rate". Did you mean "learning_rate"?'),
        ("adaptor: lora", 'unknown key "adaptor". Did you mean "adapter"?'),
        ("lr: 1e-4", 'unknown key "lr". Did you mean "learning_rate"?'),
        ("sample_packing: true", 'Did you mean "packing"?'),
        ("max_steps: many", "max_steps takes int, got str 'many'"),
        ("max_steps: true", "max_steps takes int, got bool True"),
        ("learning_rate: '1e-4'", "learning_rate takes float, got str '1e-4'"),
        ("max_length: 1.5", "max_length takes int | None, got float 1.5"),
        ("adapter: {lora: 8}", "the options of lora are a mapping, got int 8"),
        ("adapter: {lora: {}, ia3: {}}", "expected one name with its options, got 2 keys"),
        ("adapter: [lora, ia3]", "a run has one adapter, got 2"),
        ("kernel: [x, x]", '"x" stands twice'),
        ("loss: 3", "expected a name or a name with options, got int 3"),
        ("plugins: {loss: nll}", '"plugins" is only for Python; in a recipe, use'),
        ("max_steps: 1\nmax_steps: 2", 'r.yaml line 4, column 1: the key "max_steps" stands twice'),
        ("adapter: {lora: {r: 1}", "r.yaml line"),
        ("x: !!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_its_mending(write, lines, said):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write("r.yaml", BASE + lines))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: x", 'the key "model" is missing. Add a line such as: model:'),
        ("model: x", 'the key "data" is missing'),
        ("model: {revision: main}\ndata: x", 'model: the key "name" is missing'),
        ("model: {name: x, revison: y}\ndata: x", 'model: unknown key "revison". Did you mean "revision"?'),
        ("model: x\ndata: {train: y, validation: z}", 'Did you mean "eval"?'),
        ("model: x\ndata: y\nlearning_rate: nan", "learning_rate takes float, got str 'nan'. Give a number."),
        ("model: x\ndata: y\noptim: paged_adamw", 'Did you mean "paged_adamw_32bit"?'),
        ("model: [x]\ndata: x", "model: expected a name or a mapping, got list"),
        ("model: x\ndata: {eval: y}", 'data: the key "train" is missing'),
        ("model: x\ndata: {train: y, eval_fraction: 1.5}", "eval_fraction must be between 0 and 1, got 1.5"),
        ("model: x\ndata: {train: y, eval: z, eval_fraction: 0.5}", "contradict each other"),
        ("model: x\ndata: {train: 3}", "data.train: expected a file, a list or a mapping, got int 3"),
        ("- a\n- b", "a recipe must be a mapping"),
    ],
)
def test_sections_are_checked(write, text, said):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write("r.yaml", text))
    assert said in str(caught.value)


def test_a_missing_recipe_and_a_broken_override_are_named(tmp_path):
    with pytest.raises(RecipeError, match="no recipe at"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match='"max_steps" is not an override'):
        load_recipe(None, ["model=m", "max_steps"])
    with pytest.raises(RecipeError, match='"max_steps" is 3, so nothing can be set inside it'):
        load_recipe(None, ["model=m", "data=d", "max_steps=3", "max_steps.x=1"])


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
KEYS = st.sampled_from(["model", "data", "adapter", "kernel", "format", "block", "max_steps", "output_dir"]) | st.text(
    max_size=6
)


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_no_recipe_fails_with_anything_but_our_own_error(raw):
    try:
        recipe = parse_recipe(raw)
    except RecipeError:
        return
    assert recipe.model.name == (raw["model"] if isinstance(raw["model"], str) else raw["model"]["name"])
    assert {"max_steps", "output_dir"} & raw.keys() <= recipe.training.keys()
    assert type(raw.get("max_steps", 0)) is int
    assert type(raw.get("output_dir")) in (str, type(None))


@given(st.text(max_size=40))
def test_no_yaml_text_fails_with_anything_but_our_own_error(text):
    caught = None
    try:
        load(text, where="r.yaml")
    except RecipeError as error:
        caught = error
    assert caught is None or "r.yaml" in str(caught)


def test_every_mistake_is_in_one_report():
    raw = {
        "model": {"nmae": "m"}, "data": {"train": 3}, "learnin_rate": 1, "lr_scheduler_type": "cosin", "seed": "x",
        "adapter": {"lora": {"alpha": 3, "dropout": 1}}, "format": "chatt", "block": 3, "plugins": {},
        "evaluation_strategy": "steps", "eval_strategy": "no",
    }  # fmt: skip
    with pytest.raises(SettingsError) as caught:
        parse_recipe(raw)
    text = str(caught.value)
    for said in (
        'model: unknown key "nmae"', "data.train: expected", 'mean "learning_rate"?', 'lr_scheduler_type "cosin"',
        "seed takes int", 'adapter.lora: unknown key "alpha"', 'adapter.lora: unknown key "dropout"',
        'no format named "chatt"', "block: expected list[str]", '"plugins" is only for Python',
        "evaluation_strategy and eval_strategy are the same setting",
    ):  # fmt: skip
        assert text.count(said) == 1, said
    assert text.startswith(f"{len(caught.value.problems)} problems")
    assert len(caught.value.problems) == 11


@pytest.mark.parametrize("name", [r"C:\models\mine", "C:/mine", r"models\mine", "./mine", "~/mine", "a/b/c"])
def test_a_model_that_can_only_be_a_folder_is_not_taken_for_an_id_of_the_hub(name):
    (problem,) = model_problems(ModelRequest(name), needs_tokenizer=True, allow_pickle=False)
    assert (problem.what, problem.where) == ("no such folder or file.", f"model {name}")


@pytest.mark.parametrize("name", ["gpt2", "owner/name", None])
def test_what_may_be_an_id_of_the_hub_is_left_to_the_loader(name):
    assert not list(model_problems(ModelRequest(name), needs_tokenizer=True, allow_pickle=False))
