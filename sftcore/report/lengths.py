"""Describes the lengths of rows: quantiles, a histogram, and how many blocks they would fill."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any

from attrs import frozen

_BINS = 12
_QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


@frozen
class Bin:
    """How many rows have a length from `start` up to, but not including, `end`; no `end` means any length above."""

    start: int
    end: int | None
    rows: int


@frozen
class Lengths:
    """The distribution of row lengths; `unit` is tokens or characters."""

    unit: str
    total: int
    quantiles: dict[str, int]
    histogram: tuple[Bin, ...]


@frozen
class Packed:
    """The result of packing the rows: the blocks of max_length, and the share of them that holds tokens."""

    strategy: str
    blocks: int
    fill: float
    num_split: int


def describe(lengths: Sequence[int], unit: str) -> Lengths | None:
    """The lengths as quantiles and a histogram, or None if there are no rows.

    >>> describe([3, 4, 4, 9], "tokens").quantiles
    {'min': 3, '50%': 4, '90%': 9, '99%': 9, 'max': 9}
    """
    if not lengths:
        return None
    ordered = sorted(lengths)
    at = [ordered[max(math.ceil(share * len(ordered)) - 1, 0)] for share in _QUANTILES]
    names = ("min", *(f"{share:.0%}" for share in _QUANTILES[1:-1]), "max")
    return Lengths(unit, sum(ordered), dict(zip(names, at, strict=True)), _histogram(ordered, at[-2]))


def _histogram(ordered: Sequence[int], common: int) -> tuple[Bin, ...]:
    """Bins of equal, round width up to the 99% quantile, then one for everything longer."""
    width = _round_up(max(common + 1, _BINS) / _BINS)
    last = common // width + 1
    counts = [0] * (last + 1)
    for length in ordered:
        counts[min(length // width, last)] += 1
    bins = [Bin(i * width, (i + 1) * width if i < last else None, count) for i, count in enumerate(counts)]
    first = next(i for i, one in enumerate(bins) if one.rows)
    return tuple(bins[first:] if bins[-1].rows else bins[first:-1])


def _round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    power: float = 10 ** math.floor(math.log10(value))
    return next(math.ceil(step * power) for step in (1, 2, 5, 10) if step * power >= value)


def packed(lengths: array[int], capacity: int, strategy: str) -> Packed:
    """The result of packing rows of these lengths into blocks of `capacity` tokens."""
    from sftcore.data.packing.pack import pack

    packing: Any = pack(lengths, capacity, strategy)
    return Packed(strategy, packing.num_blocks, packing.fill, packing.num_split)
