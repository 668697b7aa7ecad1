"""The examples of a run's training set, numbered through all of its sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import define, field

from sftcore.data.account.origins import Origins

if TYPE_CHECKING:
    from sftcore.data.sets import DataPreparation

    Array = np.ndarray[Any, Any]


@define(eq=False)
class Census:
    """Numbers the examples that a run trains on.

    names: of the sources, as they are logged. origins: of a prepared set; None where the rows of the set, `count` of
    them, are the examples, as of one that was given ready. met: the examples of a stream in the order in which they
    were met, each with what the stream says of it.
    """

    names: tuple[str, ...]
    origins: Origins | None = None
    count: int = 0
    streamed: bool = False
    met: dict[tuple[int, int, int], tuple[Any, ...]] = field(factory=dict)
    _numbers: dict[tuple[int, int, int], int] = field(factory=dict)
    _sources: list[int] = field(factory=list)
    _ends: Array | None = None

    @classmethod
    def of(cls, data: DataPreparation, dataset: Any, name: str = "train_dataset") -> Census:
        """That of the set which was prepared under this name, or of one that nobody has prepared."""
        if not hasattr(dataset, "__len__"):
            names = [one for one in data.streams if one == name or one.startswith(f"{name}[")] or [name]
            return cls(tuple(short_name(one, name) for one in names), streamed=True)
        origins = Origins.of(data, dataset, name)
        if origins is None:
            return cls((name,), count=len(dataset))
        return cls(tuple(short_name(one, name) for one in origins.names), origins, sum(origins.sizes))

    def ids(self, rows: Sequence[int] | None, counts: Sequence[int]) -> Array | None:
        """The numbers of the examples in a batch of these rows, which hold so many documents each; None: not known."""
        if self.streamed or rows is None or len(rows) != len(counts):
            return None
        if self.origins is None:
            return np.repeat(np.asarray(rows, np.int64), counts)
        try:
            found = [self.origins.documents(row) for row in rows]
        except IndexError:  # the set was replaced since
            return None
        return np.concatenate(found) if [len(one) for one in found] == list(counts) else None

    def numbers(self, ids: Array | None, told: Sequence[Any] | None) -> Array:
        """The numbers of examples; those of a stream are numbered as they are met, alike on all processes."""
        if ids is not None:
            return ids
        return np.array([self._number(one) for one in told or ()], np.int64)

    def _number(self, told: Sequence[int]) -> int:
        source, row, part, *facts = told
        key = source, row, part
        if (number := self._numbers.get(key)) is None:
            number = self._numbers[key] = len(self._numbers)
            self.met[key] = tuple(facts)
            self._sources.append(source)
        return number

    def told(self) -> list[list[int]]:
        """What was met so far, to be met again in a run that is resumed."""
        return [[*key, *facts] for key, facts in self.met.items()]

    def by_source(self, ids: Array) -> Iterator[tuple[str, Array]]:
        """The name of each source that these examples are of, and which of them those are."""
        if len(self.names) == 1:
            yield self.names[0], np.arange(len(ids))
            return
        if self.streamed:
            of = np.array([self._sources[number] for number in ids.tolist()])
        else:
            assert self.origins is not None
            self._ends = np.cumsum(self.origins.sizes) if self._ends is None else self._ends
            of = np.searchsorted(self._ends, ids, side="right")
        for place, name in enumerate(self.names):
            if len(chosen := np.flatnonzero(of == place)):
                yield name, chosen


def short_name(name: str, of: str) -> str:
    """What a source is called by itself, in a set of this name.

    >>> short_name("train_dataset['code']", "train_dataset"), short_name("train_dataset", "train_dataset")
    ('code', 'train_dataset')
    """
    inside = name.removeprefix(of).removeprefix("[").removesuffix("]")
    return str(ast.literal_eval(inside)) if inside else name
