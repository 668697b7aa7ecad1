"""Values as errors show them."""

from __future__ import annotations

from typing import Any

EXAMPLE = ", for example "
"""What stands in a note before the first value that it was met with."""


def kind_of(value: Any) -> str:
    """What a value of JSON is, in words.

    >>> kind_of({}), kind_of(2.5)
    ('a mapping', 'a number')
    """
    names = {
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "a mapping",
    }
    return names.get(type(value), type(value).__name__)


def shortened(value: Any, limit: int = 60) -> str:
    """The value as Python writes it, cut behind this many characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def counted(count: int, thing: str) -> str:
    """How many of a thing.

    >>> counted(1, "step"), counted(2000, "row")
    ('1 step', '2,000 rows')
    """
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
