"""The `@plugin` decorator, and typed options from plain values."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import attrs
from typing_extensions import dataclass_transform

from sftcore.core.errors import BrokenPluginError, OptionTypeError, RecipeError, UnknownKeyError, raise_all

T = TypeVar("T")
_MARK = "__sftcore_plugin__"


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(attrs.field,))
def plugin(cls: type[T]) -> type[T]:
    """Make a plugin of a class: its fields become options, its docstring's first line its summary.

    The class becomes an attrs class with keyword-only fields and identity comparison (pluggy keeps plugins in sets).
    Every field needs a type and a default, so that a recipe may name the plugin alone. A field that takes further
    arguments, such as those of a library's configuration, may name them, so that errors can say where they go:
    `attrs.field(factory=dict, metadata={"takes": function})`, where the function gives the names.

    Raises:
        TypeError: the class has no docstring, or a field without a default.

    >>> @plugin
    ... class Greeting:
    ...     '''Says hello.'''
    ...     name: str = "world"
    >>> Greeting(name="reader").name, summary(Greeting)
    ('reader', 'Says hello.')
    """
    if not inspect.getdoc(cls):
        raise TypeError(
            f"{cls.__qualname__}: a plugin needs a docstring; its first line is the summary in list-plugins"
        )
    made = attrs.define(cls, eq=False, kw_only=True, slots=False)
    for option in options(made):
        if option.default is attrs.NOTHING:
            raise TypeError(f"{cls.__qualname__}.{option.name}: a plugin's option needs a default")
    setattr(made, _MARK, True)
    return made


def is_plugin(obj: object) -> bool:
    """Whether `obj` is a class made by `@plugin`."""
    return inspect.isclass(obj) and _MARK in vars(obj)


def summary(cls: type) -> str:
    """The first line of the class's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0].strip()


def options(cls: type) -> tuple[attrs.Attribute[Any], ...]:
    """The fields of a plugin class that are its options."""
    return tuple(option for option in attrs.fields(cls) if option.init)


def build(cls: type[T], values: Mapping[str, Any], *, path: str) -> T:
    """An instance of a plugin class from plain values.

    Args:
        cls: a class made by `@plugin`.
        values: options by name.
        path: where the user wrote them; it starts every error's text.

    Raises:
        UnknownKeyError: an option that the plugin does not have.
        OptionTypeError: a value of the wrong type; nothing is converted but whole numbers to float.
        RecipeError: a value that the plugin's own validator refuses.
        SettingsError: several of these.
    """
    from sftcore.core.options import structure

    known = {option.name.lstrip("_"): option for option in options(cls)}
    wrong: list[RecipeError] = [_unknown(key, value, known, path) for key, value in values.items() if key not in known]
    try:
        attrs.resolve_types(cls)  # type: ignore[type-var]
    except (NameError, TypeError) as error:  # Python 3.10 raises TypeError at a ClassVar without a type
        raise BrokenPluginError(
            f"an option of {cls.__qualname__} has a type that cannot be resolved: {error}.",
            where=path,
            fix="Import the type at module level, not under TYPE_CHECKING.",
        ) from error
    typed = {}
    for key in [key for key in values if key in known]:
        try:
            typed[key] = structure(values[key], known[key].type or Any, path=f"{path}.{key}")
        except OptionTypeError as error:
            wrong.append(error)
    raise_all(wrong)
    try:
        return cls(**typed)
    except OptionTypeError:
        raise
    except (ValueError, TypeError) as error:
        # attrs' validators put the attribute and the whole instance behind the message as further arguments
        text = str(error.args[0]) if error.args else ""
        raise RecipeError(f"{text.removesuffix('.')}.", where=path) from error


def _unknown(key: Any, value: Any, known: Mapping[str, attrs.Attribute[Any]], path: str) -> RecipeError:
    """The error of an option that the plugin does not have; one that another of its options takes is sent there."""
    for name, option in known.items():
        if key in option.metadata.get("takes", tuple)():
            return RecipeError(f'"{key}" is one of the {name}.', where=path, fix=f"Write {name}: {{{key}: {value}}}.")
    return UnknownKeyError(str(key), known, where=path)
