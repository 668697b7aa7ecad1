"""The pictures of README.md and docs: there, small, and without anything from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"


def test_each_picture_is_small_and_shown_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {
        (page.parent / name).resolve()
        for page in pages
        for name in re.findall(r"""(?:src|srcset)="([^"]+)"|!\[[^\]]*\]\(([^)]+)\)""", page.read_text(encoding="utf-8"))
        for name in name
        if name and not name.startswith("http")
    }
    there = {path.resolve() for path in PICTURES.iterdir()}
    assert there
    assert shown <= {path.resolve() for path in ROOT.rglob("*") if path.is_file()}
    assert {path.name for path in there - shown} <= {"page-dark.png"}
    assert all(path.stat().st_size < 200_000 for path in there)


def test_the_terminal_loads_nothing_from_elsewhere():
    drawn = (PICTURES / "terminal.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "url(http" not in drawn
    assert not re.search(r'(?:href|src)="http', drawn)
    text = "".join(root.itertext()).replace("\u00a0", " ")
    assert "sftcore train pip.yaml" in text
    assert "asked     Who are you?" in text
    assert "/tmp" not in text
