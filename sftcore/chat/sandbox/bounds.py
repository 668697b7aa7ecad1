"""How many bytes a step of a chat template needs at most, told before it is taken.

Only steps are here that can make much of little, such as `"x" * 10 ** 10`, or that compare everything with everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from string import Formatter
from typing import Any

from jinja2 import TemplateRuntimeError

from sftcore.chat.sandbox.limits import CHARACTER, VALUE, LimitError, weigh

_MAX_BITS = 4096
_FIVE_DIGITS = re.compile(r"[0-9]{5}")
_WIDE = re.compile(r"[0-9]{5}|%[-+ #0-9.]*\*")


def product(left: Any, right: Any) -> int:
    """For `left * right`."""
    for one, times in ((left, right), (right, left)):
        if isinstance(one, (str, list, tuple)) and isinstance(times, int):
            return weigh(one) * max(times, 0)
    return _number(_bits(left) + _bits(right))


def power(left: Any, right: Any) -> int:
    """For `left ** right`."""
    return _number(_bits(left) * abs(right)) if isinstance(right, int) else 0


def percent(pattern: Any, *values: Any, **named: Any) -> int:
    """For `pattern % values`."""
    if _WIDE.search(str(pattern)):
        raise _too_wide()
    return str(pattern).count("%") * weigh((values, named))


def _braces(pattern: str, *values: Any, **named: Any) -> int:
    specs = [spec or "" for _, name, spec, _ in Formatter().parse(pattern) if name is not None]
    if any("{" in spec or _FIVE_DIGITS.search(spec) for spec in specs):
        raise _too_wide()
    return len(specs) * weigh((values, named))


def _too_wide() -> LimitError:
    return LimitError("it makes a text by a format with five digits in a row, or with a width that is itself a value")


def _times(value: Any, *given: Any, **named: Any) -> int:
    """For what widens each character, or repeats each value, as often as an argument says or is long."""
    return (weigh(value) + VALUE) * max(map(_amount, (1, *given, *named.values())))


def _amount(argument: Any) -> int:
    if isinstance(argument, (list, tuple)):
        return sum(map(_amount, argument))
    return len(argument) if isinstance(argument, str) else argument if isinstance(argument, int) else 0


def _indent(text: Any, *given: Any, **named: Any) -> int:
    if not isinstance(text, str):
        raise TypeError("indent takes a text")  # Jinja's own would add a line end to a list, the caller's own
    return _times(text, *given, **named)


def _search(text: Any, sought: Any = None, *_: Any, **__: Any) -> int:
    """For what may compare each character with each: it makes nothing, but takes time."""
    return len(text) * len(sought or "") // 4


def _split(text: str, sep: str | None = None, *_: Any, **__: Any) -> int:
    return VALUE * (text.count(sep) + 1 if sep else len(text) // 2 + 1)


def _rsplit(text: str, *given: Any, **named: Any) -> int:
    return _split(text, *given, **named) + _search(text, *given, **named)


def _replace(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> int:
    return CHARACTER * str(text).count(str(old)) * len(str(new))


def _join(between: str, parts: Iterable[Any]) -> int:
    return CHARACTER * sum(len(str(part)) + len(between) for part in parts)


def _json(value: Any, ensure_ascii: bool = False, *given: Any, **named: Any) -> int:
    return _times(value, *given, **named) if given or named else 0


def _integer(value: Any, default: Any = 0, base: Any = 10) -> int:
    # Python itself reads at most 4,300 digits, but any number of them where the base is a power of two
    return 0 if base == 10 else _number(4 * len(str(value)))


def _number(bits: int) -> int:
    if bits > _MAX_BITS:
        raise LimitError(f"it makes a number of more than {_MAX_BITS:,} bits")
    return 0


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _refuse(*_: Any, **__: Any) -> int:
    raise TemplateRuntimeError("this method is not available to chat templates")


METHODS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _times),
    **dict.fromkeys(("strip", "lstrip", "rstrip", "rfind", "rindex", "rpartition"), _search),
    **dict.fromkeys(("format", "format_map"), _braces),
    **dict.fromkeys(("translate", "maketrans", "encode", "to_bytes", "from_bytes", "fromkeys"), _refuse),
    **dict.fromkeys(("striptags", "unescape"), _refuse),
    "expandtabs": lambda text, tabsize=8: _times(text, tabsize),
    "join": _join,
    "replace": _replace,
    "rsplit": _rsplit,
    "split": _split,
    "splitlines": lambda text, *_, **__: VALUE * len(text),
}
"""By their names: the object whose method is called is given first, then its arguments."""
FILTERS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("center", "round"), _times),
    **dict.fromkeys(("batch", "slice"), lambda _, *given, **named: _times(None, *given, **named)),
    **dict.fromkeys(("dictsort", "groupby", "max", "min", "sort", "unique"), lambda value, *_, **__: weigh(value)),
    **dict.fromkeys(("title", "wordcount"), lambda text: VALUE * len(str(text))),
    "format": percent,
    "indent": _indent,
    "int": _integer,
    "replace": _replace,
    "tojson": _json,
}
"""By their names: what the filter is given."""
