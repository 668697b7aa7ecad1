"""Plain text files: which of their lines are a text together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sftcore.config.data.section import SampleBy


def texts_in(lines: Iterable[str], sample_by: SampleBy) -> Iterator[tuple[int, str]]:
    """The texts of a file, each with the number of its first line, from 1; what is blank is none.

    "line": each line; "paragraph": lines up to a blank one; "document": all of them. They are named as in Hugging
    Face's `load_dataset("text")`. A text keeps the line breaks inside, as \\n, and none at its end.

    >>> list(texts_in(["a\\r\\n", "b\\n", " \\n", "\\n", "c"], "paragraph"))
    [(1, 'a\\nb'), (5, 'c')]
    """
    held: list[str] = []
    first = 0
    for number, line in enumerate(lines, 1):
        blank = not line.strip()
        if held and (sample_by == "line" or (sample_by == "paragraph" and blank)):
            yield first, "\n".join(held)
            held = []
        if not blank or (held and sample_by == "document"):
            first = first if held else number
            held.append(line.rstrip("\r\n"))
    if held:
        yield first, "\n".join(held).rstrip("\n" if sample_by == "document" else "")
