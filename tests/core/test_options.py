"""Options from plain values: the right type or an error with the recipe's path, and never a silent conversion."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sftcore import hookimpl, plugin
from sftcore.core.errors import OptionTypeError, RecipeError, UnknownKeyError
from sftcore.core.options import structure
from sftcore.core.plugin_class import build


@plugin
class Dials:
    """A plugin with an option of each type."""

    count: int = 1
    share: float = 0.5
    loud: bool = False
    name: str = "dial"
    mode: Literal["fast", "exact"] = "fast"
    targets: str | list[str] | None = None
    scale: int | float | None = None
    layers: list[int] = attrs.field(factory=list)
    names: tuple[str, ...] = ()
    weights: dict[str, float] = attrs.field(factory=dict)
    positive: int = attrs.field(default=1, validator=attrs.validators.ge(1))

    @hookimpl
    def claims(self):
        return []


def made(**values) -> Dials:
    return build(Dials, values, path="recipe.yaml: kernel.dials")


def refusal(**values) -> str:
    with pytest.raises(OptionTypeError) as error:
        made(**values)
    return str(error.value)


def test_an_unknown_option_names_the_nearest_one_and_the_recipes_path():
    with pytest.raises(UnknownKeyError) as error:
        made(cuont=3)
    text = str(error.value)
    assert text.startswith('recipe.yaml: kernel.dials: unknown key "cuont".')
    assert 'Did you mean "count"?' in text


def test_an_unknown_option_of_an_installed_plugin_is_found_from_the_recipe(set_up):
    with pytest.raises(UnknownKeyError) as error:
        set_up(adapter={"lora": {"lora_alhpa": 32}})
    text = str(error.value)
    assert text.startswith('recipe.yaml: adapter.lora: unknown key "lora_alhpa".')
    assert 'Did you mean "lora_alpha"?' in text


def test_a_wrong_type_of_an_installed_plugin_is_found_from_the_recipe(set_up):
    with pytest.raises(OptionTypeError) as error:
        set_up(adapter={"lora": {"r": "16"}})
    assert str(error.value) == "recipe.yaml: adapter.lora.r: expected int | None, got str '16'."


def test_options_that_are_no_mapping_are_refused(set_up):
    with pytest.raises(OptionTypeError, match=r"adapter: the options of lora are a mapping, got int 16\."):
        set_up(adapter={"lora": 16})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": "3"}, "count: expected int, got str '3'."),
        ({"count": True}, "count: expected int, got bool True."),
        ({"count": 3.0}, "count: expected int, got float 3.0."),
        ({"share": "0.5"}, "share: expected float, got str '0.5'."),
        ({"share": True}, "share: expected float, got bool True."),
        ({"loud": 1}, "loud: expected bool, got int 1."),
        ({"loud": "no"}, "loud: expected bool, got str 'no'."),
        ({"name": 3}, "name: expected str, got int 3."),
        ({"name": None}, "name: expected str, got NoneType None."),
        ({"targets": 3}, "targets: expected str | list[str] | None, got int 3."),
        ({"scale": "3"}, "scale: expected int | float | None, got str '3'."),
        ({"scale": True}, "scale: expected int | float | None, got bool True."),
        ({"layers": 3}, "layers: expected list[int], got int 3."),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_path(values, message):
    assert refusal(**values).startswith(f"recipe.yaml: kernel.dials.{message}")


def test_an_unknown_word_of_a_literal_is_refused_with_the_known_ones():
    text = refusal(mode="slow")
    assert "recipe.yaml: kernel.dials.mode" in text
    assert "'fast', 'exact'" in text


def test_a_wrong_element_inside_a_list_is_named():
    assert refusal(layers=[1, "2", 3]) == "recipe.yaml: kernel.dials.layers[1]: expected int, got str '2'."


def test_a_wrong_element_inside_a_mapping_is_named():
    text = refusal(weights={"a": 1.0, "b": "much"})
    assert text == "recipe.yaml: kernel.dials.weights.b: expected float, got str 'much'."


def test_a_text_is_not_taken_apart_into_a_tuple_of_letters():
    assert "names: expected tuple[str" in refusal(names="q_proj")


@pytest.mark.parametrize("value", [3, -1, 0])
def test_a_whole_number_is_taken_for_a_float(value):
    share = made(share=value).share
    assert (share, type(share)) == (value, float)


@pytest.mark.parametrize("value", ["all-linear", ["q_proj", "v_proj"], None, []])
def test_a_union_takes_each_of_its_types_as_it_is(value):
    assert made(targets=value).targets == value


@pytest.mark.parametrize("value", [3, 3.5, None])
def test_a_union_of_int_and_float_keeps_which_one_it_was(value):
    scale = made(scale=value).scale
    assert (scale, type(scale)) == (value, type(value))


def test_a_value_that_the_plugins_validator_refuses_is_shown_with_its_path():
    with pytest.raises(RecipeError, match=r"^recipe.yaml: kernel.dials: 'positive' must be >= 1: 0\.$"):
        made(positive=0)


def test_a_list_of_texts_in_the_configuration_does_not_take_one_text(set_up):
    with pytest.raises(OptionTypeError, match="label_names takes list"):
        set_up(label_names="labels")


def test_a_plugin_without_a_docstring_or_with_an_option_without_a_default_is_refused():
    with pytest.raises(TypeError, match="needs a docstring"):
        plugin(type("Silent", (), {}))
    with pytest.raises(TypeError, match=r"Bare\.count: a plugin's option needs a default"):
        plugin(type("Bare", (), {"__doc__": "Bare.", "__annotations__": {"count": int}}))


# --- structure(), for every type and every plain value --------------------------------------------------------------
SCALARS: list[Any] = [bool, int, float, str, type(None), Literal["a", "b"], Literal[1, "a"], Literal[True, 2]]

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "1", "1.5", "true", "null", "a"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def containers(inner):
    union = st.tuples(inner, inner).map(lambda pair: Union[pair])  # noqa: UP007 - the arms are known at run time only
    return st.one_of(
        inner.map(lambda item: list[item]),
        inner.map(lambda item: Sequence[item]),
        inner.map(lambda item: dict[str, item]),
        inner.map(lambda item: Mapping[str, item]),
        inner.map(lambda item: Union[item, None]),  # noqa: UP007
        union,
    )


TYPES = st.recursive(st.sampled_from([*SCALARS, list, dict, Any]), containers, max_leaves=3)


def same(result: Any, value: Any) -> bool:
    """Equal, and of one type at every depth; a float may stand for the whole number that it equals."""
    if isinstance(value, dict):
        return (
            type(result) is dict
            and len(result) == len(value)
            and all(
                same(a, b) and same(found, part)
                for (a, found), (b, part) in zip(result.items(), value.items(), strict=True)
            )
        )
    if isinstance(value, list):
        return type(result) is list and len(result) == len(value) and all(map(same, result, value))
    return result == value and (type(result) is type(value) or (type(value), type(result)) == (int, float))


def held_by_a_float(value: int) -> bool:
    try:
        return float(value) == value
    except OverflowError:
        return False


def fits(value: Any, wanted: Any) -> bool:
    """Whether a plain value is of this type, by the reading of typing's own documentation and nothing of ours."""
    origin, parts = get_origin(wanted) or wanted, get_args(wanted)
    if wanted is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(known) and value == known for known in parts)
    if origin in (list, Sequence):
        return isinstance(value, list) and all(fits(item, part) for item in value for part in parts)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and (
            not parts or all(fits(key, parts[0]) and fits(item, parts[1]) for key, item in value.items())
        )
    if wanted is float:
        return type(value) is float or (type(value) is int and held_by_a_float(value))
    return type(value) is wanted


@settings(deadline=None)
@given(PLAIN, TYPES)
@example("abc", list)
@example([["a", 1]], dict)
@example(True, Literal[1, "a"])
@example(1.0, Literal[1, "a"])
@example(2**53 + 1, float)
@example([1], list[float | int])
def test_structure_never_converts_a_value_silently(value, wanted):
    try:
        result = structure(value, wanted, path="option")
    except OptionTypeError:
        return
    assert same(result, value)
    assert fits(value, wanted)


@settings(deadline=None)
@given(PLAIN, TYPES)
@example(None, type(None))
def test_structure_takes_every_value_that_is_of_the_type(value, wanted):
    if fits(value, wanted):
        assert same(structure(value, wanted, path="option"), value)
