#!/usr/bin/env python3
"""Write the table of shapes in docs/how-to/formats.md from tests/plugins/formats/shapes.py; `--check` only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from generated_table import write_table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "how-to" / "formats.md"
LONGEST = 110


def table() -> str:
    """The shapes as tables, one for each group."""
    sys.path.insert(0, str(ROOT))
    from tests.plugins.formats.shapes import SHAPES

    lines: list[str] = []
    group = ""
    for shape in SHAPES:
        if shape.group != group:
            group = shape.group
            lines += ["", f"### {group}", "", "| data | a row | read by | becomes |", "|---|---|---|---|"]
        row = json.dumps(shape.row, ensure_ascii=False)
        row = row if len(row) <= LONGEST else f"{row[:LONGEST]}…"
        by = "auto" if shape.by == "auto" else _code(shape.by)
        by = by if shape.by == "auto" or shape.by.startswith("format:") else f"refused: {shape.by}"
        lines.append(f"| {shape.name} | {_code(row)} | {by} | {'; '.join(map(_code, shape.expected))} |")
    return "\n".join(lines) + "\n\n"


def _code(text: str) -> str:
    return "`" + text.replace("\n", "⏎").replace("|", "\\|") + "`"


if __name__ == "__main__":
    sys.exit(write_table(PAGE, "shapes", table))
