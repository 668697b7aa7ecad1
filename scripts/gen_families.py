#!/usr/bin/env python3
"""Write the table of families in docs/how-to/vision-language.md from what their tests found; `--check` only compares.

The tests write tests/plugins/vlm/families/results.json when they are run as that folder's conftest.py says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from generated_table import write_table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "how-to" / "vision-language.md"
RESULTS = ROOT / "tests" / "plugins" / "vlm" / "families" / "results.json"
HELD = "yes"


def table() -> str:
    """Each family with what holds, and below it why the rest is not."""
    sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]
    from tests.plugins.vlm.families.family_table import COLUMNS, FAMILIES

    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = ["", f"| family | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    notes: list[str] = []
    for family in FAMILIES:
        columns = found[family.name]
        cells = [columns[column].partition(":")[0] for column in COLUMNS]
        lines.append(f"| {family.name} | {' | '.join(cells)} |")
        reasons: dict[str, list[str]] = {}
        for column in COLUMNS:
            if columns[column] != HELD:
                reasons.setdefault(columns[column], []).append(column)
        if family.one_number:
            notes.append(f"- {family.name}: rows of a batch with different numbers of images are refused")
        if family.one_size:
            notes.append(f"- {family.name}: images of different sizes in a batch are refused")
        for reason, given in reasons.items():
            which = "" if len(given) == len(COLUMNS) else f", {', '.join(given)}"
            notes.append(f"- {family.name}{which}: {reason}")
    return "\n".join([*lines, "", *notes, ""]) + "\n"


if __name__ == "__main__":
    sys.exit(write_table(PAGE, "families", table))
