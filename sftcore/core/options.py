"""Checks plain values (from YAML, JSON or Python) against types, without silent conversions."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Union, get_args, get_origin

from sftcore.core.errors import OptionTypeError


def structure(value: Any, wanted: Any, *, path: str) -> Any:
    """`value` as `wanted`, a type or a type expression; only whole numbers become floats, where a float holds them.

    Raises:
        OptionTypeError: the value is of another type; the error's place is `path`, down to the element.

    >>> structure(3, float, path="lr")
    3.0
    >>> structure([1, "2"], list[int], path="recipe.yaml: kernel.layers")
    Traceback (most recent call last):
    sftcore.core.errors.OptionTypeError: recipe.yaml: kernel.layers[1]: expected int, got str '2'.
    """
    origin, parts = get_origin(wanted) or wanted, get_args(wanted)
    if wanted is Any:
        return value
    if methods := methods_of(wanted):
        if all(callable(getattr(value, name, None)) for name in methods):
            return value
    elif _is_union(wanted):
        for arm in sorted(parts, key=lambda arm: arm is not type(value)):  # so that 1 stays an int in `float | int`
            with suppress(OptionTypeError):
                return structure(value, arm, path=path)
    elif origin is Literal:
        # True equals 1 and 1.0 equals 1, so that `in` alone would take one for the other
        if any(type(value) is type(known) and value == known for known in parts):
            return value
    elif origin is float and type(value) is int:
        with suppress(OverflowError):
            if (number := float(value)) == value:
                return number
    elif origin is Callable:
        if callable(value):
            return value
    elif origin in (list, tuple, Sequence, Iterable):
        items = _item_types(origin, parts, len(value)) if isinstance(value, (list, tuple)) else None
        if items is not None:
            pairs = enumerate(zip(value, items, strict=True))
            made = [structure(part, item, path=f"{path}[{i}]") for i, (part, item) in pairs]
            return tuple(made) if origin is tuple else made
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping):
            key_type, item = parts or (Any, Any)
            return {
                structure(key, key_type, path=f"{path}.{key}"): structure(part, item, path=f"{path}.{key}")
                for key, part in value.items()
            }
    elif isinstance(origin, type) and isinstance(value, origin) and not (origin is int and isinstance(value, bool)):
        return value
    raise OptionTypeError(f"expected {type_name(wanted)}, got {type(value).__name__} {value!r}.", where=path)


def type_name(wanted: Any) -> str:
    """A type as a user would write it: `int`, `list[str] | None`.

    >>> type_name(Union[int, None])
    'int | None'
    """
    if wanted is None or wanted is type(None):
        return "None"
    if _is_union(wanted):
        return " | ".join(type_name(part) for part in get_args(wanted))
    if get_origin(wanted) is Callable:
        return "function"
    if get_origin(wanted) is not None and get_args(wanted) and get_origin(wanted).__name__ != "Literal":
        inner = ", ".join(type_name(part) for part in get_args(wanted))
        return f"{get_origin(wanted).__name__}[{inner}]"
    if isinstance(wanted, type):
        return wanted.__name__
    return str(wanted).replace("typing.", "").replace("collections.abc.", "")


def arms_of(wanted: Any) -> tuple[Any, ...]:
    """The types of a union; of another type, that type alone."""
    return get_args(wanted) if _is_union(wanted) else (wanted,)


def methods_of(wanted: Any) -> list[str]:
    """The methods that a protocol asks for; none for another type."""
    if not getattr(wanted, "_is_protocol", False):
        return []
    own = {"__call__"} & set(vars(wanted))
    return [name for name, value in vars(wanted).items() if name in own or (callable(value) and name[0] != "_")]


def _is_union(wanted: Any) -> bool:
    return get_origin(wanted) in (Union, types.UnionType)


def _item_types(origin: Any, parts: tuple[Any, ...], length: int) -> tuple[Any, ...] | None:
    """The type of each of `length` items; None where a tuple's type asks for another number of them."""
    if origin is tuple and parts and parts[-1] is not Ellipsis:
        return parts if len(parts) == length else None
    return (parts or (Any,))[:1] * length
