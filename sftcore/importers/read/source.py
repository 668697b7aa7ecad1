"""What a reader finds in a file: settings with the lines on which they stand, and what could not be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from attrs import define, field, frozen

from sftcore.core.errors import RecipeError

Key: TypeAlias = "tuple[str | int, ...]"
LARGEST = 2**20
"""Characters of a file that is read."""
ENVIRONMENT, LAUNCHER, ACCELERATE = "environment", "launcher", "accelerate"
"""Settings under which a script's variables, its launcher's options and accelerate's file stand."""


@frozen
class Place:
    """Where a setting stands: a line, counted from 1, of a file."""

    line: int
    file: str = ""

    def __str__(self) -> str:
        return f"{self.file} line {self.line}" if self.file else f"line {self.line}"


@frozen
class Unread:
    """Something that stands in the file and was not read, with the reason."""

    place: Place
    shown: str
    why: str


@define
class Source:
    """The settings of a file: `values` are plain and nested, `places` says for each leaf where it stands.

    `traits` are what a script is seen to do with its rows.
    """

    values: dict[str, Any] = field(factory=dict)
    places: dict[Key, Place] = field(factory=dict)
    unread: list[Unread] = field(factory=list)
    traits: set[str] = field(factory=set)

    def set(self, key: Key, value: Any, place: Place) -> None:
        """Set what stands under a key; what stood there before is kept as something that is not read."""
        node: Any = self.values
        for part in key[:-1]:
            node = node.setdefault(part, {})
        if key[-1] in node:
            self._replaced(key, place)
        node[key[-1]] = value
        for leaf, _ in leaves(value, key):
            self.places[leaf] = place

    def add(self, other: Source, *, under: Key = ()) -> None:
        """Take the settings of another file; those that are there already stay, and theirs are said to be replaced."""
        for leaf, value in leaves(other.values):
            key, place = (*under, *leaf), other.places.get(leaf, Place(0))
            if any(key[:size] in self.places for size in range(1, len(key) + 1)):
                why = f"replaced by {dotted(key)} on the command line"
                self.unread.append(Unread(place, f"{dotted(key)}: {value!r}", why))
        _merged(self.values, other.values, under)
        for leaf, place in other.places.items():
            self.places.setdefault((*under, *leaf), place)
        self.unread += other.unread

    def _replaced(self, key: Key, place: Place) -> None:
        for leaf in [one for one in self.places if one[: len(key)] == key]:
            before = self.places.pop(leaf)
            shown = f"{dotted(leaf)}: {value_at(self.values, leaf)!r}"
            self.unread.append(Unread(before, shown, f"set again on {place}"))


def leaves(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """The settings of nested values: those of mappings, and of lists that hold mappings, one by one.

    >>> list(leaves({"lora": {"r": 8}, "data": [{"path": "a"}], "tags": ["x", "y"]}))
    [(('lora', 'r'), 8), (('data', 0, 'path'), 'a'), (('tags',), ['x', 'y'])]
    """
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*key, name))
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        for i, inner in enumerate(value):
            yield from leaves(inner, (*key, i))
    elif key:
        yield key, value


def value_at(values: Any, key: Key) -> Any:
    """What stands under a key of nested values; None if nothing does."""
    for part in key:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def dotted(key: Key) -> str:
    """A key as people write it.

    >>> dotted(("datasets", 0, "path"))
    'datasets[0].path'
    """
    said = ""
    for part in key:
        said += f"[{part}]" if isinstance(part, int) else f".{part}" if said else str(part)
    return said


def text_of(path: Path) -> str:
    """The text of a file.

    Raises:
        RecipeError: it cannot be read, is no text, or is larger than a configuration.
    """
    try:
        if path.stat().st_size > 4 * LARGEST:
            raise RecipeError("the file is too large for a configuration.", where=str(path))
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"there is no file {path}.", fix="Name the configuration to import.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the file cannot be read: {error}.", where=str(path)) from None
    if len(text) > LARGEST:
        raise RecipeError("the file is too large for a configuration.", where=str(path))
    return text


def _merged(values: dict[str, Any], others: Mapping[str, Any], under: Key) -> None:
    node: Any = values
    for part in under:
        node = node.setdefault(part, {})
    for name, value in others.items():
        if isinstance(value, dict) and isinstance(node.get(name), dict):
            _merged(node, value, (name,))
        else:
            node.setdefault(name, value)
