"""A table within a page of the docs, which a script writes between two comments; `--check` only compares."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def write_table(page: Path, name: str, table: Callable[[], str]) -> int:
    """Write the table between `<!-- NAME -->` and `<!-- end of NAME -->`; returns 1 where it is stale and only
    compared."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    made = f"{before}{begin}{table()}{end}{rest.split(end, 1)[1]}"
    if "--check" in sys.argv:
        if made != text:
            print(f"the table of {name} in {page} is stale. Run: python {sys.argv[0]}", file=sys.stderr)
        return int(made != text)
    page.write_text(made, encoding="utf-8")
    return 0
