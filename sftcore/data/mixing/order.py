"""The order of a mixture: every source's rows are due at regular times, and what is due first comes next.

With shares of 2/3 and 1/3, the rows of the first source are due once in each of the slots below them, at a random time
within the slot, and so are those of the second:

    a  |--a0--|--a1--|--a2--|--a3--|
    b  |-----b0------|-----b1------|        a0 b0 a1 a2 b1 a3

At any time each source is within one row of its share (stratified sampling), without the pattern of a round-robin. The
times depend on the seed and on the number of the row alone, so a stream continues its order from the counts of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import define, field, frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sftcore.config.data.section import Stop

_DRAWN = 1024
"""How many times are drawn at once."""


@frozen
class Order:
    """In which order the rows of sources come.

    shares: that of each source in the mixture, above 0 and together 1; empty where they are read one after another.
    seed: decides when in its slot a row is due.
    stop: an epoch ends where the "first" source has no row left when its turn comes, or where "all" have been read;
        until then, those that were read begin again.
    """

    shares: tuple[float, ...] = ()
    seed: int = 0
    stop: Stop = "first"

    @classmethod
    def of(cls, weights: Sequence[float | None], seed: int, stop: Stop) -> Order:
        """The order for these weights; where some have one, the others have 1.

        >>> Order.of([2, None, 1], 0, "first").shares, Order.of([None, None], 0, "first").shares
        ((0.5, 0.25, 0.25), ())
        """
        if all(weight is None for weight in weights):
            return cls((), seed, stop)
        given = [1.0 if weight is None else float(weight) for weight in weights]
        return cls(tuple(weight / sum(given) for weight in given), seed, stop)

    def times(self, source: int, first: int, count: int) -> NDArray[np.float64]:
        """When the rows from number `first` on are due: (count,) float64, in rows of the mixture."""
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, source]))
        bits.advance(first)
        at = np.random.Generator(bits).random(count)
        found: NDArray[np.float64] = (np.arange(first, first + count) + at) / self.shares[source]
        return found

    def end(self, sizes: Sequence[int]) -> tuple[float, int]:
        """When a mixture of sources with so many rows ends, and which source ends it."""
        over = [float(self.times(source, size, 1)[0]) for source, size in enumerate(sizes)]
        chosen = min if self.stop == "first" else max
        time = chosen(over)
        return time, over.index(time)

    def rows(self, sizes: Sequence[int]) -> NDArray[np.int64] | None:
        """The order of the rows of map-style sources, by their index among the rows of all sources in turn.

        None where they are read one after another: (rows of the mixture,) int64.
        """
        if not self.shares:
            return None
        time, _ = self.end(sizes)
        due, rows = [], []
        for source, (share, size) in enumerate(zip(self.shares, sizes, strict=True)):
            times = self.times(source, 0, int(time * share) + 1)
            times = times[times < time]
            due.append(times)
            rows.append(sum(sizes[:source]) + np.arange(len(times)) % size)
        order: NDArray[np.int64] = np.concatenate(rows)[np.argsort(np.concatenate(due), kind="stable")]
        return order


@define
class Due:
    """When the next row of one source is due, for rows that are taken one at a time."""

    order: Order
    source: int
    taken: int = 0
    _times: Iterator[Any] = field(factory=lambda: iter(()), init=False)
    next: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self._advance()

    def take(self) -> None:
        """Count one row as taken."""
        self.taken += 1
        self._advance()

    def _advance(self) -> None:
        found = next(self._times, None)
        if found is None:
            self._times = iter(self.order.times(self.source, self.taken, _DRAWN).tolist())
            found = next(self._times)
        self.next = found
