"""A stream of several streams, which resumes at its own position as those of `datasets` do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets.iterable_dataset
from datasets import IterableDataset

from sftcore.data.mixing.order import Due, Order

_FIXED: Any = getattr(datasets.iterable_dataset, "DataSourcesShufflingDisallowed", ())
"""What streams raise whose files have to stay in their order (datasets 5.2; before, they stay in it)."""


def mixed_stream(streams: Sequence[IterableDataset], order: Order) -> IterableDataset:
    """The rows of these streams, one after another or mixed, as `order` says. No row is read before it is needed."""
    return IterableDataset(MixedRows([one._ex_iterable for one in streams], order))


class MixedRows(datasets.iterable_dataset._BaseExamplesIterable):  # type: ignore[misc]
    """The rows of several iterables, as a stage of a stream (the interface of datasets 4.8 and 5.2)."""

    def __init__(self, ex_iterables: Sequence[Any], order: Order) -> None:
        super().__init__()
        self.ex_iterables = list(ex_iterables)
        self.order = order

    def _init_state_dict(self) -> dict[str, Any]:
        count = len(self.ex_iterables)
        self._state_dict = {
            "ex_iterables": [one._init_state_dict() for one in self.ex_iterables],
            "taken": [0] * count,
            "ended": [False] * count,
            "type": type(self).__name__,
        }
        return self._state_dict

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        return self._mixed() if self.order.shares else self._in_turn()

    def _in_turn(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        state = self._state()
        for place, one in enumerate(self.ex_iterables):
            if not state["ended"][place]:
                for _, row in one:
                    state["taken"][place] += 1
                    yield (place, state["taken"][place]), row
                state["ended"][place] = True

    def _mixed(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        state = self._state()
        due = [Due(self.order, place, taken) for place, taken in enumerate(state["taken"])]
        rows = [iter(one) for one in self.ex_iterables]
        left = set(range(len(rows)))
        begun = {place for place in left if due[place].taken}
        while left:
            place = min(left, key=lambda one: due[one].next)
            found = next(rows[place], None)
            if found is None:
                state["ended"][place] = True
                if self.order.stop == "first" or all(state["ended"]):
                    return
                if place not in begun:  # it has no rows at all, which of a process's part may well be
                    left.remove(place)
                    continue
                rows[place] = self._again(place, state)
                begun.remove(place)
                continue
            begun.add(place)
            due[place].take()
            state["taken"][place] = due[place].taken
            yield (place, due[place].taken), found[1]

    def _again(self, place: int, state: dict[str, Any]) -> Iterator[Any]:
        """The rows of one source from its beginning."""
        one = self.ex_iterables[place]
        if self._state_dict is not None:
            state["ex_iterables"][place] = one._init_state_dict()
        return iter(one)

    def _state(self) -> dict[str, Any]:
        """The state that is saved with a checkpoint, or one of the same form where none is kept."""
        count = len(self.ex_iterables)
        return self._state_dict if self._state_dict is not None else {"taken": [0] * count, "ended": [False] * count}

    def shuffle_data_sources(self, generator: Any) -> MixedRows:
        """Shuffle the files of each source, where they need not stay in their order."""

        def shuffled(one: Any) -> Any:
            try:
                return one.shuffle_data_sources(generator)
            except _FIXED:
                return one

        return MixedRows([shuffled(one) for one in self.ex_iterables], self.order)

    @property
    def num_shards(self) -> int:
        """Into how many parts of like proportions the stream can be split."""
        count: int = min(one.num_shards for one in self.ex_iterables)
        return count

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> MixedRows:
        """One part of every source."""
        count = min(num_shards, self.num_shards)
        taken = self.ex_iterables if index < count else []
        parts = [one.shard_data_sources(count, index, contiguous=contiguous) for one in taken]
        return MixedRows(parts, self.order)

    def reshard_data_sources(self) -> MixedRows:
        """Every source in more parts, where it can be."""
        return MixedRows([one.reshard_data_sources() for one in self.ex_iterables], self.order)
