"""Text from data, file names or models made safe to print: nothing in it steers a terminal or misleads a reader."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 20_000
"""Characters of one message that are shown; a row quoted in an error may have millions."""


def visible(text: str) -> str:
    """Text that is safe to print: control characters, which could steer a terminal, are spelled out.

    So are invisible ones, which could reverse the reading order or hide words, and lone surrogates, which cannot be
    printed at all.

    >>> visible("red: \\x1b[31m, turned: \\u202e")
    'red: \\\\x1b[31m, turned: \\\\u202e'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


_STYLE = re.compile("\x1b\\[[0-9;:]*m")


def unstyled(text: str) -> str:
    """A library's report without the codes that colour it, which would be spelled out.

    >>> unstyled("\\x1b[1mLOAD REPORT\\x1b[0m")
    'LOAD REPORT'
    """
    return _STYLE.sub("", text)


def message(text: str) -> str:
    """The same for a message that may quote data: cut in the middle where it is very long.

    >>> len(message("x" * 1_000_000)) < 21_000
    True
    """
    if len(text) > LONGEST:
        half = LONGEST // 2
        text = f"{text[:half]} … ({len(text) - 2 * half:,} characters left out) … {text[-half:]}"
    return visible(text)
