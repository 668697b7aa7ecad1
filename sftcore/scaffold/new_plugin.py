"""Write the files of a new plugin: a distribution whose tests pass as written."""

from __future__ import annotations

import builtins
import keyword
import re
from importlib.resources import files
from pathlib import Path

from sftcore.core.discovery import discover, normalized
from sftcore.core.errors import RecipeError, nearest
from sftcore.core.types import AUTO, KINDS
from sftcore.util.disk import writing

PREFIX = "sftcore-"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_CONFTEST = 'pytest_plugins = "sftcore.testing"\n'
_IGNORED = "__pycache__/\n*.egg-info/\ndist/\n.pytest_cache/\n"


def new_plugin(kind: str, name: str, parent: Path) -> Path:
    """Write a distribution `sftcore-NAME` into a new folder of that name.

    Args:
        kind: one of KINDS.
        name: what recipes will call the plugin: lower case, digits and single hyphens, beginning with a letter.
        parent: the folder in which the new one is made.

    Returns:
        The new folder.

    Raises:
        RecipeError: the kind is unknown, the name is no name of a distribution or is taken, or the folder exists.
    """
    check_name(kind, name)
    distribution = name if name.startswith(PREFIX) else f"{PREFIX}{name}"
    folder = parent / distribution
    if folder.exists():
        raise RecipeError(f"the folder {folder} exists.", fix="Choose another name, or --path DIR.")
    module = distribution.replace("-", "_")
    code = _asset(f"{kind}.py") + _asset(f"{kind}_test.py")
    words = {
        "kind": kind,
        "name": name,
        "distribution": distribution,
        "module": module,
        "class": _class_name(kind, name, code),
        "summary": f"{'An' if kind[0] in 'aeiou' else 'A'} {kind} for sftcore",
        "use": f"{kind}={name}",
    }
    for place, source in {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{module}.py": f"{kind}.py",
        "tests/conftest.py": None,
        f"tests/test_{module}.py": f"{kind}_test.py",
        ".github/workflows/tests.yml": "ci.yml",
        ".gitignore": None,
    }.items():
        text = (_CONFTEST if place.endswith(".py") else _IGNORED) if source is None else _filled(_asset(source), words)
        path = folder / place
        with writing("the new plugin", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return folder


def check_name(kind: str, name: str) -> None:
    """Refuse a kind that does not exist, and a name that no plugin of this kind can have.

    Raises:
        RecipeError: with the nearest kind, a name that would do, or who has it already.
    """
    if kind not in KINDS:
        raise RecipeError(
            f'there is no kind of plugin named "{kind}".{nearest(kind, KINDS)}', fix=f"Kinds: {', '.join(KINDS)}."
        )
    if not _NAME.fullmatch(name):
        better = re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()).strip("-0123456789")
        raise RecipeError(
            f'"{name}" cannot be the name of a plugin.',
            fix="Use lower-case letters, digits and single hyphens, beginning with a letter"
            + (f": {better}." if _NAME.fullmatch(better) else "."),
        )
    if name == AUTO:
        raise RecipeError(f'"{AUTO}" leaves a choice open in recipes, and cannot be the name of a plugin.')
    for entry in discover().of_kind(kind):
        if normalized(entry.name) == normalized(name):
            raise RecipeError(
                f'{kind} "{name}" is installed already, by {entry.distribution} {entry.version}.',
                fix=f"Choose another name, such as my-{name}: recipes would have to say which of the two they mean.",
            )


def _class_name(kind: str, name: str, code: str) -> str:
    """The name in capitals, with the kind behind it where the code has that name already."""
    found = "".join(part.capitalize() for part in name.split("-"))
    taken = keyword.iskeyword(found) or hasattr(builtins, found) or re.search(rf"\b{found}\b", code)
    return f"{found}{kind.capitalize()}" if taken else found


def _asset(name: str) -> str:
    return (files("sftcore") / "assets/new_plugin" / f"{name}.txt").read_text("utf-8")


def _filled(text: str, words: dict[str, str]) -> str:
    """The text with each word in the place of its `@word@`."""
    return re.sub(r"@(\w+)@", lambda found: words.get(found[1], found[0]), text)
