"""The rows of a run that hurt, as its page shows them: a few of each kind, with their texts where these are at hand."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from sftcore.core.errors import DataError
from sftcore.data.account.table import FILE, read_table
from sftcore.report.rows.ranked import OF_LOSS, RankedRow, What, ranking_of
from sftcore.report.rows.texts import texts_of

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN, OF_SOURCE, SOURCES = 25, 10, 12
"""Rows of each kind that are shown; further ones of each source, of so many sources."""
_READ, _LISTED = 2**26, 2_000_000
"""Bytes of data files that are read again for the texts of rows, and rows of a list that a page is made from."""


@frozen
class HurtingRow:
    """One row: where it is, its source, its loss in each epoch, its supervised tokens, and its text (None: unknown)."""

    place: str
    source: str
    losses: tuple[float, ...]
    supervised: int | None
    text: str | None


@frozen
class HurtingRows:
    """Rows of one kind ("worst", "late" or "jumps"), the worst first; `notes` say what to mind of their texts."""

    what: str
    rows: tuple[HurtingRow, ...]
    notes: tuple[str, ...] = ()


def hurting_of(folder: Path, *, with_texts: bool = True) -> tuple[HurtingRows, ...]:
    """The rows that hurt of the run in a folder; none where it keeps no losses of rows, or has none yet.

    Args:
        folder: of the run.
        with_texts: whether the data files are read again, as long as they are small.
    """
    path = folder / FILE
    try:
        stamp = path.stat()
    except OSError:
        return ()
    return _hurting(path, (stamp.st_mtime_ns, stamp.st_size), with_texts)


@functools.lru_cache(maxsize=2)
def _hurting(path: Path, stamp: tuple[int, int], with_texts: bool) -> tuple[HurtingRows, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if pq.read_metadata(path).num_rows > _LISTED:  # reading it would hold up the run that keeps the page
            return ()
        table, facts = read_table(path)
    except (DataError, OSError, pa.ArrowException):  # one that is damaged is no reason to have no page
        return ()
    epochs = facts.get("epochs") or ()
    kinds = OF_LOSS if len(epochs) > 1 else OF_LOSS[: len(epochs)]
    found = {what: _chosen(table, facts, what) for what in kinds}
    every = [*itertools.chain.from_iterable(found.values())]
    texts, notes = _texts(every, path.parent) if with_texts else ([None] * len(every), [])
    of_rows = iter(texts)
    return tuple(
        HurtingRows(
            what,
            tuple(HurtingRow(row.place, row.source, row.loss, row.supervised, next(of_rows)) for row in rows),
            tuple(notes),
        )
        for what, rows in found.items()
        if rows
    )


def _chosen(table: pa.Table, facts: Mapping[str, Any], what: What) -> list[RankedRow]:
    """The worst rows of all, and of each source, the worst first."""
    import pyarrow.compute as pc

    chosen = [*ranking_of(table, facts, what, worst=SHOWN).rows]
    source = table["source"].cast("string")
    names = pc.unique(source).to_pylist()
    for name in names[:SOURCES] if len(names) > 1 else ():
        among = np.asarray(pc.fill_null(pc.equal(source, name), False).to_numpy())
        chosen += ranking_of(table, facts, what, worst=OF_SOURCE, among=among).rows
    return sorted(dict.fromkeys(chosen), key=lambda row: -row.score)


def _texts(rows: Sequence[RankedRow], folder: Path) -> tuple[list[str | None], list[str]]:
    files = {Path(row.file).expanduser() for row in rows if row.file is not None}
    sizes = [path.stat().st_size for name in files for path in (name, folder / name) if path.is_file()]
    if sum(sizes) > _READ:
        return [None] * len(rows), ["the data files are large; sftcore rows shows the texts"]
    return texts_of(rows, folder)
