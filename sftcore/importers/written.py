"""Writes a draft as a recipe: YAML with a comment on what changes, and at the end on all that is not carried over."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from sftcore.config import yaml12
from sftcore.core.errors import RecipeError
from sftcore.core.visible import visible
from sftcore.importers.draft import SECTIONS, Draft, Entry, Line

_WIDTH = 118
_BESIDE = 100
"""Columns up to which a comment stands behind its value."""


def written(draft: Draft, *, file: str, verb: str) -> str:
    """The text of a recipe file."""
    lines = [f"# Made of {visible(file)} by `sftcore import {verb}`."]
    lines += _comment(f"Defaults that differ are written out: they are those of {draft.peer} {draft.version}.")
    if draft.left_of_gpu:
        lines += _comment(f"Left out, because it needs a GPU: {'; '.join(draft.left_of_gpu)}.")
    for name in _in_order(draft.entries):
        entries = {key: one for key, one in draft.entries.items() if key == name or key.startswith(f"{name}.")}
        lines += _entry(_nested(name, entries), 0)
    same, named = list(draft.of_outcome("equivalent")), list(draft.of_outcome("named"))
    for head, some in (("Says what holds here anyway:", same), ("Not carried over:", named)):
        if some:
            lines += ["", f"# {head}"]
            for one in some:
                lines += _accounted(one)
    return "\n".join(lines) + "\n"


def values(draft: Draft) -> dict[str, Any]:
    """The recipe as plain values, as a reader of the text gets them."""
    found: dict[str, Any] = {}
    for key in draft.entries:
        node = found
        *parents, last = key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = draft.entries[key].value
    return found


def _in_order(entries: Mapping[str, Entry]) -> list[str]:
    names = list(dict.fromkeys(key.partition(".")[0] for key in entries))
    return [name for name in SECTIONS if name in names] + [name for name in names if name not in SECTIONS]


def _nested(name: str, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """The entries of one section as mappings whose leaves are entries."""
    found: dict[str, Any] = {}
    for key, entry in entries.items():
        node = found
        *parents, last = key.split(".")
        for part in parents:
            below = node.get(part)
            if not isinstance(below, dict):
                below = node[part] = {} if below is None else {"": below}
            node = below
        node[last] = entry
    return found


def _entry(tree: Mapping[str, Any], indent: int) -> Iterator[str]:
    for key, node in tree.items():
        start = f"{' ' * indent}{scalar(key)}:"
        if isinstance(node, dict):
            yield start
            yield from _entry(node, indent + 2)
            continue
        text = _value(node.value, indent)
        inline = text if text.startswith("\n") else f" {text}"
        note = _plain(node.note)
        if note and "\n" not in inline and len(start) + len(inline) + len(note) + 4 <= _BESIDE:
            yield f"{start}{inline}  # {note}"
        else:
            yield from _comment(note, indent) if note else ()
            yield f"{start}{inline}"


def _value(value: Any, indent: int) -> str:
    if isinstance(value, Mapping):
        if not value:
            return "{}"
        flow = _flow(value)
        if len(flow) + indent < 90:
            return flow
        inner = [f"{' ' * (indent + 2)}{scalar(key)}:{_joined(one, indent + 2)}" for key, one in value.items()]
        return "\n" + "\n".join(inner)
    if isinstance(value, list):
        flow = _flow(value)
        if len(flow) + indent < 90 and not any(isinstance(one, Mapping) for one in value):
            return flow
        return "\n" + "\n".join(f"{' ' * indent}- {_flow(one)}" for one in value)
    return scalar(value)


def _joined(value: Any, indent: int) -> str:
    text = _value(value, indent)
    return text if text.startswith("\n") else f" {text}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_flow(one) for one in value) + "]"
    return scalar(value)


def scalar(value: Any) -> str:
    """A value as a recipe's YAML reads it back.

    >>> [scalar(value) for value in (True, None, 2e-05, "no", "1e-4", "chatml", "a: b")]
    ['true', 'null', '2e-5', 'no', '"1e-4"', 'chatml', '"a: b"']
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            return {math.inf: ".inf", -math.inf: "-.inf"}.get(value, ".nan")
        short = f"{value:g}"
        text = short if float(short) == value else repr(value)
        text = re.sub(r"e([-+])0?(\d)", lambda match: f"e{match[1].strip('+')}{match[2]}", text)
        return text if any(sign in text for sign in ".e") else f"{text}.0"
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9_./~][\w./~@+ -]*", text, re.ASCII) and not text.endswith(" "):
        try:
            if yaml12.load(f"[{text}]", where="") == [text]:
                return text
        except RecipeError:
            pass
    return _quoted(text)


def _quoted(text: str) -> str:
    """The text in double quotes, with what cannot be printed spelled as YAML spells it."""
    said = ""
    for char in text:
        if char in '"\\':
            said += f"\\{char}"
        elif char == "\n":
            said += "\\n"
        elif char == "\t":
            said += "\\t"
        elif char.isprintable():
            said += char
        else:
            code = ord(char)
            said += f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    return f'"{said}"'


def _plain(text: str) -> str:
    """A text that stays within one comment: nothing in it can begin a line of its own."""
    return " ".join(visible(text.replace("\r", " ").replace("\u2028", " ").replace("\x85", " ")).split())


def _comment(text: str, indent: int = 0) -> list[str]:
    return _wrapped(text, " " * indent + "# ", " " * indent + "# ")


def _accounted(one: Line) -> list[str]:
    shown = _plain(one.shown)
    shown = shown if len(shown) <= 100 else f"{shown[:100]}…"
    text = f"{one.place}: {shown}" + (f" - {one.words}" if one.words else "")
    return _wrapped(text, "#   ", "#     ")


def _wrapped(text: str, first: str, following: str) -> list[str]:
    wrapper = textwrap.TextWrapper(
        _WIDTH, initial_indent=first, subsequent_indent=following, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.wrap(_plain(text))
