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

FILL = "FILL-IN"
"""Stands for what the file does not say and a recipe needs."""
UNKNOWN = "its value is known only when the script runs"
_TO_FILL = {
    "model", "model_name", "model_name_or_path", "pretrained_model_name_or_path", "base_model", "model_id_or_path",
    "checkpoint_dir", "dataset", "dataset_name", "path", "data_files", "learning_rate", "lr", "num_train_epochs",
    "num_epochs", "epochs", "max_steps", "per_device_train_batch_size", "micro_batch_size", "batch_size",
    "gradient_accumulation_steps", "max_length", "max_seq_length", "sequence_len", "cutoff_len", "lora_r", "lora_rank",
    "r", "lora_alpha", "lora_dropout", "warmup_steps", "weight_decay",
}  # fmt: skip
"""Settings that change what is trained: where a script computes one, no default takes its place."""


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

    `traits` are what a script is seen to do with its rows, and `unknown` how it computes what has to be filled in.
    """

    values: dict[str, Any] = field(factory=dict)
    places: dict[Key, Place] = field(factory=dict)
    unread: list[Unread] = field(factory=list)
    traits: set[str] = field(factory=set)
    unknown: dict[Key, str] = field(factory=dict)

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

    def not_known(self, key: Key, shown: str, place: Place) -> None:
        """Note a setting whose value only running the script would tell."""
        if key[-1] in _TO_FILL:
            self.set(key, FILL, place)
            self.unknown[key] = shown
        else:
            self.unread.append(Unread(place, shown, UNKNOWN))

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
