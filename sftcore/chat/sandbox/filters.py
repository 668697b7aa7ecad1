"""Jinja's filters and globals for chat templates, each of those that can make much of little with its check."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from sftcore.chat.sandbox.limits import PERCENT, TooLargeError, admit_width

if TYPE_CHECKING:
    from sftcore.chat.sandbox.environment import BoundedEnvironment

UNUSED_FILTERS = ("urlize", "urlencode", "xmlattr", "striptags", "wordwrap", "pprint")
"""For web pages: no chat template uses them, and nobody has looked at what they cost on hostile text."""
UNUSED_GLOBALS = ("lipsum", "cycler", "joiner")
_LAZY = ("map", "select", "reject", "selectattr", "rejectattr", "batch", "slice", "unique", "items")
_MAX_LIST = 2**20
_MAX_PATTERN = 1000
_MAX_DIGITS = 1000


def add_filters(environment: BoundedEnvironment) -> None:
    """Put the checks around the environment's filters, and take away what chat templates do not need."""
    for name in UNUSED_FILTERS:
        del environment.filters[name]
    known = dict(environment.filters)
    before = _checks_before(environment)
    for name in known.keys() & {*before, *_LAZY}:
        environment.filters[name] = _checked(known[name], before.get(name), name in _LAZY)
    for name in ("string", "escape", "e", "forceescape"):
        environment.filters[name] = _text_after(environment, known[name])
    environment.filters["tojson"] = _text_after(environment, environment.filters["tojson"])
    environment.filters["list"] = _listed
    environment.filters["trim"] = functools.partial(_trimmed, environment)
    environment.filters["join"] = _joining(environment, known["map"])


def add_globals(environment: BoundedEnvironment) -> None:
    """The same for its globals."""
    for name in UNUSED_GLOBALS:
        del environment.globals[name]
    environment.globals["dict"] = lambda *args, **kwargs: environment.measured(dict(*args, **kwargs))
    now: Any = environment.globals.get("strftime_now")
    if now is not None:
        environment.globals["strftime_now"] = functools.partial(_now, now)


def _checks_before(environment: BoundedEnvironment) -> dict[str, Callable[..., None]]:
    """What a filter is asked before it is called, with its own arguments."""

    def indent(text: str, width: Any = 4, *_: Any, **__: Any) -> None:
        admit_width(width)
        lines = len(text.splitlines())
        environment.admit(len(text) + lines * (len(width) if isinstance(width, str) else int(width)))

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, *rest: Any, **more: Any) -> None:
        for filling in (indent, *rest, *more.values()):
            if (isinstance(filling, int) and filling > 16) or len(str(filling)) > 64:
                raise TooLargeError("an indent of more than 16")

    def number(value: Any, number: Any = 0, *_: Any, **__: Any) -> None:
        admit_width(number)

    def integer(value: Any, default: Any = 0, base: Any = 10) -> None:
        # Python reads no more than 4,300 digits, but any number of them where the base is a power of two
        if base != 10 and len(str(value)) > _MAX_DIGITS:
            raise TooLargeError(f"a number of more than {_MAX_DIGITS:,} digits")

    return {
        "center": lambda text, width=80: admit_width(width),
        "replace": environment.admit_replace,
        "format": lambda text, *args, **kwargs: environment.admit_format(
            str(text), [*args, *kwargs.values()], PERCENT.search(str(text)) is not None
        ),
        "indent": indent,
        "tojson": tojson,
        "batch": number,
        "slice": number,
        "round": number,
        "int": integer,
    }


def _checked(inner: Callable[..., Any], admit: Callable[..., None] | None, lazy: bool) -> Callable[..., Any]:
    """The filter behind its check; one that is lazy gets no other lazy one, as a tower of them overflows the stack."""
    at = 1 if hasattr(inner, "jinja_pass_arg") else 0

    @functools.wraps(inner)  # with what Jinja's decorators put on it: some filters are given the context first
    def call(*args: Any, **kwargs: Any) -> Any:
        if admit is not None:
            admit(*args[at:], **kwargs)
        if lazy and type(args[at]) is GeneratorType:
            args = (*args[:at], list(args[at]), *args[at + 1 :])
        return inner(*args, **kwargs)

    return call


def _text_after(environment: BoundedEnvironment, inner: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, which makes a few times what it is given: in a chain that is much."""

    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        text = inner(*args, **kwargs)
        environment.admit(len(text))
        return text

    return call


def _listed(value: Any) -> list[Any]:
    found = list(value)
    if len(found) > _MAX_LIST:
        raise TooLargeError(f"a list of more than {_MAX_LIST:,} values")
    return found


def _trimmed(environment: BoundedEnvironment, value: Any, chars: str | None = None) -> str:
    text = value if isinstance(value, str) else str(value)
    if chars is not None:
        environment.admit_search(text, chars)
    return text.strip(chars)


def _joining(environment: BoundedEnvironment, mapped: Callable[..., Any]) -> Callable[..., str]:
    context = environment.context_class(environment, {}, None, {})

    def join(value: Any, d: str = "", attribute: Any = None) -> str:
        parts = value if attribute is None else mapped(context, value, attribute=attribute)
        return environment.join(str(d).join, map(str, parts))

    return join


def _now(now: Callable[[str], str], format: str) -> str:
    if len(format) > _MAX_PATTERN:
        raise TooLargeError(f"a date whose pattern has more than {_MAX_PATTERN:,} characters")
    return now(format)
