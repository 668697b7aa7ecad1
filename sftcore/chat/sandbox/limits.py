"""How much a single step of a chat template may make."""

from __future__ import annotations

import re
from string import Formatter
from typing import Any

from jinja2 import TemplateRuntimeError

MAX_TEXT = 2**24
"""Characters that one step may make."""
MAX_VALUES = 2**17
"""Values in one list or mapping, with all that is inside."""
MAX_DEPTH = 500
"""Lists in lists: Python's own functions go into them by recursion, some without looking at how deep they are."""
MAX_WIDTH = 10_000
MAX_BITS = 4096
MAX_COMPARED = 2**28
"""Characters compared by one search."""

PERCENT = re.compile(r"%(?:\([^()]*\))?[-+ #0]*(?:\*|[0-9]{5}|[0-9]*\.(?:\*|[0-9]{5}))|%\([^()]*\(")
"""A width of five digits or more, or one that is itself a value; or brackets in a name, behind which it could hide."""
_FIVE_DIGITS = re.compile(r"[0-9]{5}")


class TooLargeError(TemplateRuntimeError):
    """A step of a template would make more than it may."""

    def __init__(self, what: str) -> None:
        super().__init__(f"it makes {what}")


def admit_text(length: int) -> None:
    """Of so many characters.

    Raises:
        TooLargeError: they are too many.
    """
    if length > MAX_TEXT:
        raise TooLargeError(f"a text of more than {MAX_TEXT:,} characters")


def admit_width(width: Any) -> None:
    """Of a text that is filled up.

    Raises:
        TooLargeError: it is too wide.
    """
    if isinstance(width, int) and width > MAX_WIDTH:
        raise too_wide()


def too_wide() -> TooLargeError:
    """The error for a width."""
    return TooLargeError(f"a width, or a count, of more than {MAX_WIDTH:,}")


def has_wide_braces(pattern: str) -> bool:
    """Whether a pattern of `str.format` has a width of five digits or more, or one that is itself a value.

    >>> [has_wide_braces(pattern) for pattern in ("{:>99999}", "{:>{}}", "{{'a': {}}} {:5}")]
    [True, True, False]
    """
    specs = (spec for _, _, spec, _ in Formatter().parse(pattern) if spec)
    return any("{" in spec or _FIVE_DIGITS.search(spec) for spec in specs)
