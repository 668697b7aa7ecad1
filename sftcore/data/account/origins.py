"""Which examples of the given data the rows of a prepared set hold, whatever was done with them since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen

from sftcore.data.account.outcomes import Outcomes

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]


@frozen(eq=False)
class Origins:
    """The examples of a set, counted through all of its sources, and where each prepared row has them.

    names: what the sources are called in the trainer. outcomes: those of each source. kept: (kept,) int64, the numbers
    of the examples that were kept. picked: (rows,) int64, the index among the kept of each row that was not packed, or
    that was packed then; None where they are all there in order. blocks: for each prepared row the indices of the rows
    that it holds, large_list<int64>; None where rows are not packed. order: (rows,) int64, the prepared row at each
    place of the set, where it was shuffled since.
    """

    names: tuple[str, ...]
    outcomes: tuple[Outcomes, ...]
    kept: Array = field(repr=False)
    picked: Array | None = field(default=None, repr=False)
    blocks: tuple[Array, Array] | None = field(default=None, repr=False)
    order: Array | None = field(default=None, repr=False)

    @property
    def sizes(self) -> list[int]:
        """How many examples each source has."""
        return [len(one.examples) for one in self.outcomes if one.examples is not None]

    def documents(self, row: int) -> Array:
        """The numbers of the examples that the row at this place of the set holds, in their order in it."""
        if self.order is not None:
            row = int(self.order[row])
        if self.blocks is None:
            found = np.array([row])
        else:
            offsets, documents = self.blocks
            found = documents[offsets[row] : offsets[row + 1]]
        if self.picked is not None:
            found = self.picked[found]
        numbers: Array = self.kept[found]
        return numbers

    @classmethod
    def of(cls, data: Any, dataset: Any, name: str) -> Origins | None:
        """Those of the set that was prepared under this name; None where this is another set, or a stream.

        `data` is a `sftcore.data.sets.DataPreparation`, which comes above.
        """
        ledger, mixed = data.ledger_of(name), data.mixed.get(name)
        if ledger is None or not hasattr(dataset, "__len__"):
            return None
        names = (name,) if mixed is None else mixed.names
        ledgers = [data.ledger_of(one) for one in names]
        outcomes = tuple(one.outcomes for one in ledgers if one is not None and one.outcomes is not None)
        if len(outcomes) < len(names) or any(one.examples is None for one in outcomes):
            return None
        packed = ledger.outcomes.documents if ledger.outcomes is not None else None
        num_rows = ledger.rows_kept if packed is None else len(packed)
        if len(dataset) != num_rows:
            return None
        firsts = np.cumsum([0, *(len(one.examples) for one in outcomes)])
        kept = np.concatenate([one.kept() + first for one, first in zip(outcomes, firsts, strict=False)])
        # the rows of a mixture that is not packed were put in order by an index, which `picked` is
        order = None if mixed is not None and packed is None else _order_of(dataset)
        return cls(names, outcomes, kept, None if mixed is None else mixed.rows, _flat(packed), order)


def _order_of(dataset: Any) -> Array | None:
    indices = getattr(dataset, "_indices", None)
    return None if indices is None else indices.column(0).to_numpy()


def _flat(blocks: Any) -> tuple[Array, Array] | None:
    if blocks is None:
        return None
    lists = blocks.combine_chunks()
    return lists.offsets.to_numpy(), lists.values.to_numpy()


def places_in(numbers: Sequence[int], sizes: Sequence[int]) -> tuple[Array, Array]:
    """The source of each example that is counted through all of them, and its number there.

    >>> places_in([0, 3, 4], [3, 2])
    (array([0, 1, 1]), array([0, 0, 1]))
    """
    firsts = np.cumsum([0, *sizes])
    of = np.searchsorted(firsts, np.asarray(numbers), side="right") - 1
    return of, np.asarray(numbers) - firsts[of]
