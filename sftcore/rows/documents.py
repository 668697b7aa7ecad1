"""Where the documents of a row of tokens are: in rows that were packed or padded before."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from sftcore.core.errors import RowError


def documents_of(
    length: int, lengths: Sequence[int] | None, positions: Sequence[int] | None, attended: Sequence[int] | None
) -> list[tuple[int, int]]:
    """The documents of a row as ranges of tokens; padding belongs to none.

    Args:
        length: the row's tokens.
        lengths: those of its documents, in order (`seq_lengths`).
        positions: each token's position in its document (`position_ids`).
        attended: 0 for padding, else 1, or the number of the document (`attention_mask`).

    >>> documents_of(5, None, [0, 1, 0, 1, 2], None), documents_of(4, None, None, [1, 1, 2, 0])
    ([(0, 2), (2, 5)], [(0, 2), (2, 3)])

    Raises:
        RowError: they do not fit the row or each other.
    """
    first, last = (0, length) if attended is None else _attended(attended)
    edges = {first, last}
    if lengths is not None:
        if sum(lengths) not in (length, last - first) or min(lengths, default=1) < 1:
            raise RowError(f'"seq_lengths" adds up to {sum(lengths)}, but the row has {last - first} tokens.')
        at = first if sum(lengths) == last - first else 0
        for one in lengths:
            at += one
            edges.add(at)
    if positions is not None:
        restarts = {*_restarts(positions, first, last), last}
        if lengths is not None and {edge for edge in edges if first <= edge <= last} != restarts:
            raise RowError(
                '"position_ids" begins documents elsewhere than the lengths of the documents say.',
                fix="Remove one of the two columns.",
            )
        edges |= restarts
    if attended is not None:
        edges.update(at for at in range(first + 1, last) if attended[at] != attended[at - 1])
    inside = sorted(edge for edge in edges if first <= edge <= last)
    return list(itertools.pairwise(inside))


def _attended(mask: Sequence[int]) -> tuple[int, int]:
    """The range between the padding of both ends."""
    found = [at for at, value in enumerate(mask) if value]
    if not found:
        return 0, 0
    first, last = found[0], found[-1] + 1
    if len(found) != last - first:
        raise RowError(
            f'"attention_mask" is 0 at token {mask.index(0, first)}, between tokens that are read.',
            fix="Padding stands at an end of a row. Give such tokens a label of -100 instead, or leave them out.",
        )
    return first, last


def _restarts(positions: Sequence[int], first: int, last: int) -> Iterator[int]:
    for at in range(first, last):
        if at > first and positions[at] == positions[at - 1] + 1:
            continue
        if positions[at] != 0:
            raise RowError(
                f'"position_ids" goes to {positions[at]} at token {at}, but a document counts from 0 without gaps.',
                fix="Remove the column: positions are counted anew from where each document begins.",
            )
        yield at
