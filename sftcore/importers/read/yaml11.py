"""YAML as other tools read it: the booleans of YAML 1.1, numbers such as 1e-4, and references such as ${output_dir}.

Tags, which could run code, are not followed: what bears one is named as not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sftcore.config.yaml12 import BoundedLoader
from sftcore.core.errors import RecipeError
from sftcore.importers.read.source import Key, Place, Source, Unread, dotted, text_of

_BOOL = {"yes": True, "no": False, "true": True, "false": False, "on": True, "off": False}
_NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")
_PLAIN = tuple(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "merge"))
LONGEST = 10_000
"""Characters of a text with its references filled in."""


class _Loader(BoundedLoader):
    """Only composes nodes; a key that is no text is seen where the node becomes a value."""


def scalar(text: str) -> Any:
    """An unquoted word as YAML reads it; dates stay texts.

    >>> [scalar(word) for word in ("yes", "1e-4", "16", "~", "0x10", "2026-01-31", "nf4")]
    [True, 0.0001, 16, None, 16, '2026-01-31', 'nf4']
    """
    lower = text.lower()
    if lower in ("", "~", "null"):
        return None
    if lower in _BOOL:
        return _BOOL[lower]
    if re.fullmatch(r"[-+]?(?:[0-9]{1,40}|[0-9]{1,3}(?:_[0-9]{3})+)", text):
        return int(text.replace("_", ""))
    if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text):
        return int(text, 16)
    if _NUMBER.match(text) and len(text) < 60:
        return float(text)
    return {".inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan")}.get(lower, text)


def read_yaml(path: Path, *, name: str = "") -> Source:
    """The settings of a YAML or JSON file.

    Args:
        path: the file.
        name: how it is called in the account, where it is not the file that was asked for.

    Raises:
        RecipeError: it is not YAML, or not a mapping, or makes much of little.
    """
    text = text_of(path)
    source = Source()
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        _Reader(source, name).mapping(node, (), str(path))
    except RecipeError:
        raise
    except RecursionError:
        raise RecipeError("the YAML is nested too deeply.", where=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path} line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        raise RecipeError(f"{what}.", where=place, fix="Mend the YAML.") from None
    except ValueError as error:
        raise RecipeError(f"this is not YAML: {error}.", where=str(path)) from None
    source.values = _filled(source.values, source.values, 0)
    return source


class _Reader:
    """Turns nodes into plain values, and notes where each stands."""

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name

    def mapping(self, node: yaml.Node | None, key: Key, where: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError("a configuration is a mapping of keys to values.", where=where)
        self.source.values = self.value(node, key) or {}

    def value(self, node: yaml.Node, key: Key) -> Any:
        place = Place(node.start_mark.line + 1, self.name)
        if isinstance(node, yaml.MappingNode):
            if node.tag != "tag:yaml.org,2002:map":
                return self._unread(node, key)
            found: dict[str, Any] = {}
            for name, inner in self._pairs(node):
                at = (*key, name)
                if name in found:
                    shown = f"{dotted(at)}: {found[name]!r}"
                    why = f"set again on line {inner.start_mark.line + 1}"
                    self.source.unread.append(Unread(self._forget(at, place), shown, why))
                found[name] = self.value(inner, at)
            if not found and key:
                self.source.places[key] = place
            return found
        if isinstance(node, yaml.SequenceNode):
            if node.tag != "tag:yaml.org,2002:seq":
                return self._unread(node, key)
            if any(isinstance(one, yaml.MappingNode) for one in node.value):
                return [self.value(one, (*key, i)) for i, one in enumerate(node.value)]
            inside = Source()
            listed = [_Reader(inside, self.name).value(one, (*key, i)) for i, one in enumerate(node.value)]
            self.source.unread += inside.unread
            self.source.places[key] = place
            return listed
        if node.tag not in _PLAIN:
            return self._unread(node, key)
        self.source.places[key] = place
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return scalar(node.value) if plain else str(node.value)

    def _pairs(self, node: yaml.MappingNode) -> list[tuple[str, yaml.Node]]:
        """Keys and values, those that `<<` brings in first, where the mapping itself does not say them."""
        own = [(str(one.value), inner) for one, inner in node.value if one.value != "<<"]
        merged: list[tuple[str, yaml.Node]] = []
        for one, inner in node.value:
            if one.value == "<<":
                for each in inner.value if isinstance(inner, yaml.SequenceNode) else [inner]:
                    if isinstance(each, yaml.MappingNode):
                        merged += [pair for pair in self._pairs(each) if pair[0] not in dict([*own, *merged])]
        return [*merged, *own]

    def _forget(self, key: Key, place: Place) -> Place:
        known = [one for one in self.source.places if one[: len(key)] == key]
        found = [self.source.places.pop(one) for one in known]
        return next(iter(found), place)

    def _unread(self, node: yaml.Node, key: Key) -> None:
        place = Place(node.start_mark.line + 1, self.name)
        shown = f"{dotted(key)}: {node.tag}"
        self.source.unread.append(Unread(place, shown, "a tag, which could run code, is not followed"))


def _filled(value: Any, values: Mapping[str, Any], depth: int) -> Any:
    """Texts with references to other settings of the file filled in; those to anything else stay as they are."""
    if isinstance(value, dict):
        return {name: _filled(inner, values, depth) for name, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, values, depth) for inner in value]
    if not isinstance(value, str) or "${" not in value or depth > 8:
        return value

    def said(match: re.Match[str]) -> str:
        found: Any = values
        for part in match[1].split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return match[0] if found is None or isinstance(found, (dict, list)) else str(found)

    whole = _REFERENCE.fullmatch(value)
    text = _REFERENCE.sub(said, value)
    if text == value or len(text) > LONGEST:
        return value
    return _filled(scalar(text) if whole else text, values, depth + 1)
