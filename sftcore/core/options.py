"""Plain values (from YAML, JSON or Python) into typed ones, by cattrs, without silent conversions."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from sftcore.core.errors import OptionTypeError

if TYPE_CHECKING:
    from cattrs import Converter


def structure(value: Any, wanted: Any, *, path: str) -> Any:
    """`value` as `wanted`, a type or a type expression.

    Raises:
        OptionTypeError: the value is of another type; the error's place is `path`, down to the element.

    >>> structure(3, float, path="lr")
    3.0
    >>> structure("3", int, path="recipe.yaml: adapter.lora.r")
    Traceback (most recent call last):
    sftcore.core.errors.OptionTypeError: recipe.yaml: adapter.lora.r: expected int, got str '3'.
    """
    try:
        return _converter().structure(value, wanted)
    except Exception as error:  # cattrs raises exception groups of whatever its hooks raise
        detail = _first_fault(error, value)
        raise OptionTypeError(
            f"expected {type_name(wanted)}, got {type(value).__name__} {value!r}.", where=path, fix=detail
        ) from None


def type_name(wanted: Any) -> str:
    """A type as a user would write it: `int`, `list[str] | None`.

    >>> type_name(Union[int, None])
    'int | None'
    """
    if wanted is None or wanted is type(None):
        return "None"
    if _is_union(wanted):
        return " | ".join(type_name(part) for part in get_args(wanted))
    if get_origin(wanted) is not None and get_args(wanted) and get_origin(wanted).__name__ != "Literal":
        inner = ", ".join(type_name(part) for part in get_args(wanted))
        return f"{get_origin(wanted).__name__}[{inner}]"
    if isinstance(wanted, type):
        return wanted.__name__
    return str(wanted).replace("typing.", "").replace("collections.abc.", "")


@functools.cache
def _converter() -> Converter:
    from cattrs import Converter

    converter = Converter(forbid_extra_keys=True)
    for primitive in (bool, int, str, bytes, type(None)):
        converter.register_structure_hook(primitive, _exactly)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook_factory(_is_union, lambda union: functools.partial(_first_arm, converter))
    converter.register_structure_hook_func(_is_literal, _word)
    converter.register_structure_hook_func(_is_list, functools.partial(_items, converter))
    converter.register_structure_hook_func(_is_tuple, functools.partial(_tuple, converter))
    converter.register_structure_hook_func(_is_set, functools.partial(_set, converter))
    converter.register_structure_hook_func(_is_mapping, functools.partial(_mapping, converter))
    return converter


def _is_union(wanted: Any) -> bool:
    return get_origin(wanted) in (Union, types.UnionType)


def _is_literal(wanted: Any) -> bool:
    return get_origin(wanted) is Literal


def _is_list(wanted: Any) -> bool:
    # a bare list too: cattrs would take a text apart into its letters
    return (get_origin(wanted) or wanted) in (list, Sequence)


def _is_tuple(wanted: Any) -> bool:
    return (get_origin(wanted) or wanted) is tuple


def _is_set(wanted: Any) -> bool:
    return (get_origin(wanted) or wanted) in (set, frozenset)


def _is_mapping(wanted: Any) -> bool:
    return (get_origin(wanted) or wanted) in (dict, Mapping)


def _exactly(value: Any, wanted: type) -> Any:
    # bool is an int in Python, never in a recipe
    if type(value) is not wanted:
        raise TypeError(f"{value!r} is no {wanted.__name__}")
    return value


def _number(value: Any, _: type) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if number != value and value == value:  # not for nan, which equals nothing
        raise TypeError(f"{value!r} is too large for an exact float")
    return number


def _word(value: Any, wanted: Any) -> Any:
    # True equals 1 and 1.0 equals 1, so that `in` alone would take one for the other
    if not any(type(value) is type(known) and value == known for known in get_args(wanted)):
        raise TypeError(f"{value!r} is none of {', '.join(map(repr, get_args(wanted)))}")
    return value


def _first_arm(converter: Converter, value: Any, union: Any) -> Any:
    for arm in get_args(union):
        if arm is type(value) or (arm is type(None) and value is None):
            return value
    for arm in get_args(union):
        if arm is type(None):
            continue
        try:
            return converter.structure(value, arm)
        except Exception:  # the next arm may take it; if none does, the error below names the value
            continue
    raise TypeError(f"{value!r} is none of {type_name(union)}")


def _items(converter: Converter, value: Any, wanted: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{value!r} is no list")
    (item,) = get_args(wanted) or (Any,)
    return [converter.structure(part, item) for part in value]


def _tuple(converter: Converter, value: Any, wanted: Any) -> tuple[Any, ...]:
    items = get_args(wanted) or (Any, ...)
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{value!r} is no list")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise TypeError(f"{value!r} has {len(value)} entries, not {len(items)}")
    return tuple(converter.structure(part, item) for part, item in zip(value, items, strict=True))


def _set(converter: Converter, value: Any, wanted: Any) -> Any:
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise TypeError(f"{value!r} is no list")
    (item,) = get_args(wanted) or (Any,)
    return (get_origin(wanted) or wanted)(converter.structure(part, item) for part in value)


def _mapping(converter: Converter, value: Any, wanted: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is no mapping")
    key_type, item = get_args(wanted) or (Any, Any)
    return {converter.structure(key, key_type): converter.structure(part, item) for key, part in value.items()}


def _first_fault(error: BaseException, value: Any) -> str:
    """The innermost message, where it is about a part of the value and not the whole of it."""
    inner: BaseException = error
    while getattr(inner, "exceptions", None):
        inner = inner.exceptions[0]  # type: ignore[attr-defined]
    return "" if str(inner).startswith(repr(value)) else f"({inner}.)"
