"""The minimal core: small enough to be read in an hour, and in need of nothing else of ours."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = ROOT / "sftcore" / "core"
READING_ORDER = [
    "hookspecs", "types", "plugin_class", "options", "discovery", "registry", "door", "errors", "visible",
    "deprecations",
]  # fmt: skip


def test_the_core_is_under_1950_lines():
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in CORE.rglob("*.py"))
    assert lines < 1950


def test_the_core_imports_nothing_else_of_ours():
    for path in CORE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert not name.startswith("sftcore") or name.startswith("sftcore.core."), f"{path.name}: {name}"


def test_the_page_of_the_core_walks_through_all_its_modules():
    page = (ROOT / "docs" / "explanation" / "the-core.md").read_text(encoding="utf-8")
    walked = re.findall(r"^## (?:\d+\. )?`(\w+)`", page, re.MULTILINE)
    assert walked == READING_ORDER
    assert {path.stem for path in CORE.glob("*.py")} - {"__init__"} == set(READING_ORDER)
    assert len(page.splitlines()) <= 230
