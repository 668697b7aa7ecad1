"""Finds the rows of a run that hurt: by their loss over the epochs, or by what became of them.

Mean and spread of a row over the epochs are what dataset cartography draws (Swayamdipta et al. 2020, arXiv:2009.10795),
with the loss in the place of the probability.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from attrs import asdict, frozen

from sftcore.core.errors import DataError, nearest, quoted
from sftcore.data.account.table import BROKEN, CUT, DROPPED, REFUSED, read_table

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

What: TypeAlias = Literal["worst", "late", "jumps", "cut", "dropped", "duplicates"]
OF_LOSS: tuple[What, ...] = ("worst", "late", "jumps")
_MORE = 10


@frozen
class RankedRow:
    """A row as the list has it, with what it is ranked by.

    loss: its loss in each of `epochs`; mean, spread (standard deviation) and rise (the largest from one epoch to the
    next) of them, None without losses. same_as: source and number of the first row that is the same. score: what it
    is ranked by, the larger the worse.
    """

    set: str
    source: str
    file: str | None
    row: int
    file_row: int | None
    line: int | None
    part: int
    outcome: str
    reason: str | None
    tokens: int | None
    tokens_cut: int | None
    supervised: int | None
    same_as: tuple[str, int] | None
    epochs: tuple[int, ...]
    loss: tuple[float, ...]
    loss_tokens: tuple[int, ...]
    mean: float | None
    spread: float | None
    rise: float | None
    score: float

    @property
    def place(self) -> str:
        """The file or source, the number and the line of the row."""
        part = f", part {self.part}" if self.part else ""
        if self.file is None:
            return f"{self.source} row {self.row}{part}"
        line = f" (line {self.line})" if self.line is not None else ""
        return f"{self.file} row {self.row if self.file_row is None else self.file_row}{line}{part}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no number for NaN and Inf: they are None."""
        return {name: _finite(value) for name, value in asdict(self).items()}


@frozen
class Ranking:
    """The rows that were asked for, the worst first, of how many there are of this kind; `loss` is which loss it is."""

    what: What
    rows: tuple[RankedRow, ...]
    count: int
    listed: int
    epochs: tuple[int, ...]
    loss: str | None


def ranked(path: Path, what: What, *, worst: int, source: str | None = None) -> Ranking:
    """The worst rows of a run's list, or of one that `sftcore check` has written.

    Args:
        path: the file, or the folder of a run.
        what: by what: of "worst" the loss stays highest, "late" falls last, "jumps" rises most between two epochs;
            "cut", "dropped" (also what was refused or broken) and "duplicates" are what became of rows.
        worst: at most so many.
        source: of this source or file alone.

    Raises:
        DataError: there is no such list, or it does not have what is asked for.
    """
    table, facts = read_table(path)
    epochs = tuple(facts.get("epochs") or ())
    where = str(path)
    if what in OF_LOSS and not epochs:
        raise DataError(
            "the list has no losses of rows: it was written without a run, or before its first log, with "
            "row_losses: false, or with a loss that gives none.",
            where=where,
            fix=f"Ask for something else: --what {', '.join(one for one in get_args(What) if one not in OF_LOSS)}.",
        )
    if what in ("late", "jumps") and len(epochs) < 2:
        raise DataError(f"--what {what} compares epochs, and there is one.", where=where, fix="Use --what worst.")
    return ranking_of(
        table, facts, what, worst=worst, among=None if source is None else _of_source(table, source, where)
    )


def ranking_of(
    table: pa.Table, facts: Mapping[str, Any], what: What, *, worst: int, among: Array | None = None
) -> Ranking:
    """The worst rows of a list that has what is asked for.

    Args:
        table, facts: from `read_table`.
        what, worst: as for `ranked`.
        among: (rows,) bool, the rows that are looked at; None is all.
    """
    scores = _SCORES[what](table)
    found = np.flatnonzero(~np.isnan(scores) if among is None else ~np.isnan(scores) & among)
    order = found[np.argsort(-scores[found], kind="stable")][:worst]
    every = table.select(["source", "row"]) if what == "duplicates" else None
    rows = table.take(order).to_pylist()
    chosen = tuple(_ranked_row(row, float(scores[at]), every) for at, row in zip(order, rows, strict=True))
    return Ranking(what, chosen, len(found), len(table), tuple(facts.get("epochs") or ()), facts.get("loss"))


def _of_source(table: pa.Table, source: str, where: str) -> Array:
    """Which rows are of this source, by its name or by a file: (rows,) bool.

    Raises:
        DataError: there is none of that name.
    """
    import pyarrow.compute as pc

    names = [one for one in pc.unique(table["source"].cast("string")).to_pylist() if one is not None]
    files = [one for one in pc.unique(table["file"].cast("string")).to_pylist() if one is not None]
    for column, known in (("source", names), ("file", files)):
        fitting = [one for one in known if one == source] or [one for one in known if Path(one).name == source]
        if fitting:
            found: Array = pc.is_in(table[column].cast("string"), value_set=_texts(fitting)).to_numpy()
            return found
    what = f'there is no source "{source}".{nearest(source, [*names, *files])}'
    raise DataError(what, where=where, fix=f"The sources are {quoted(names)}.")


def _texts(values: Sequence[str]) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, pa.string())


# --- Scores: (rows,) float64, the larger the worse, NaN for a row that is not of the kind ------------------------
@frozen(eq=False)
class _Lists:
    """A column of lists: the rows that have values, where the values of each begin, how many they are, and all."""

    rows: Array
    starts: Array
    lengths: Array
    values: Array

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> _Lists:
        import pyarrow.compute as pc

        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
        values = pc.list_flatten(column).to_numpy().astype(np.float64)
        rows = np.flatnonzero(lengths)
        lengths = lengths[rows]
        return cls(rows, np.cumsum(lengths) - lengths, lengths, values)

    def each(self, of: np.ufunc, values: Array | None = None) -> Array:
        """What this function makes of the values of each row: (rows that have some,)."""
        values = self.values if values is None else values
        found: Array = of.reduceat(values, self.starts) if len(self.starts) else np.empty(0)
        return found

    def filled(self, found: Array, count: int) -> Array:
        """These results at the places of their rows, NaN elsewhere: (count,)."""
        every = np.full(count, np.nan)
        every[self.rows] = found
        return every


def _worst(table: pa.Table) -> Array:
    """The lowest loss of the row, as if `_MORE` tokens with the mean loss of all rows belonged to it.

    Of few tokens a high loss says little: one unlikely word is enough.
    """
    losses, counts = _Lists.of(table["loss"]), _Lists.of(table["loss_tokens"])
    lowest = losses.each(np.minimum, np.where(np.isfinite(losses.values), losses.values, np.inf))
    lowest[~losses.each(np.logical_and, np.isfinite(losses.values)).astype(bool)] = np.inf
    last = losses.values[losses.starts + losses.lengths - 1]
    finite = last[np.isfinite(last)]
    mean = float(finite.mean()) if len(finite) else 0.0
    tokens = np.nan_to_num(counts.filled(counts.each(np.maximum), len(table)))[losses.rows]
    with np.errstate(invalid="ignore"):  # no tokens of an infinite loss
        scores = np.where(tokens > 0, (tokens * lowest + _MORE * mean) / (tokens + _MORE), lowest)
    return losses.filled(scores, len(table))


def _late(table: pa.Table) -> Array:
    """The share of its fall that was still ahead of it, on average over the epochs; of two, how little it fell."""
    losses = _Lists.of(table["loss"])
    first, last = losses.values[losses.starts], losses.values[losses.starts + losses.lengths - 1]
    finite = losses.each(np.logical_and, np.isfinite(losses.values)).astype(bool)
    with np.errstate(all="ignore"):
        ahead = (losses.each(np.add) / losses.lengths - last) / (first - last)
        scores = np.where(losses.lengths == 2, last / first, ahead)
        scores[~(finite & (losses.lengths > 1) & (last < first))] = np.nan
    return losses.filled(scores, len(table))


def _jumps(table: pa.Table) -> Array:
    """The largest rise from one epoch to the next; NaN, which nothing can be compared with, is the worst loss."""
    losses = _Lists.of(table["loss"])
    rises = np.full(len(losses.values), -np.inf)
    before, after = losses.values[:-1], np.where(np.isnan(losses.values), np.inf, losses.values)[1:]
    with np.errstate(invalid="ignore"):
        rises[1:] = np.where(np.isfinite(before), after - before, -np.inf)
    rises[losses.starts] = -np.inf  # its first loss is behind the last of another row
    found = losses.each(np.maximum, rises)
    found = np.where(found > 0, found, np.nan)
    return losses.filled(found, len(table))


def _outcome(table: pa.Table, *kinds: str) -> Array:
    import pyarrow.compute as pc

    found: Array = pc.is_in(table["outcome"].cast("string"), value_set=_texts(kinds)).to_numpy()
    return found


def _cut(table: pa.Table) -> Array:
    import pyarrow.compute as pc

    cut = pc.fill_null(table["tokens_cut"], 0).to_numpy().astype(np.float64)
    return np.where(_outcome(table, CUT), cut, np.nan)


def _dropped(table: pa.Table) -> Array:
    return np.where(_outcome(table, DROPPED, REFUSED, BROKEN), 0.0, np.nan)


def _duplicates(table: pa.Table) -> Array:
    import pyarrow.compute as pc

    return np.where(pc.is_valid(table["same_as"]).to_numpy(), 0.0, np.nan)


_SCORES: dict[str, Callable[[Any], Any]] = {
    "worst": _worst, "late": _late, "jumps": _jumps, "cut": _cut, "dropped": _dropped, "duplicates": _duplicates,
}  # fmt: skip


def _or_inf(loss: float) -> float:
    """NaN, which nothing can be compared with, is the worst loss."""
    return math.inf if math.isnan(loss) else loss


def _rise(losses: Sequence[float]) -> float | None:
    steps = [_or_inf(after) - before for before, after in itertools.pairwise(losses) if math.isfinite(before)]
    return max(steps, default=None)


def _ranked_row(row: Mapping[str, Any], score: float, every: pa.Table | None) -> RankedRow:
    losses = tuple(row["loss"] or ())
    same = None
    if every is not None and row["same_as"] is not None:
        first = every.slice(row["same_as"], 1).to_pylist()[0]
        same = first["source"], first["row"]
    finite = [one for one in losses if math.isfinite(one)]
    return RankedRow(
        **{
            name: row[name]
            for name in ("set", "source", "file", "row", "file_row", "line", "part", "outcome", "reason")
        },
        **{name: row[name] for name in ("tokens", "tokens_cut", "supervised")},
        same_as=same,
        epochs=tuple(row["epochs"] or ()),
        loss=losses,
        loss_tokens=tuple(row["loss_tokens"] or ()),
        mean=statistics.fmean(losses) if losses else None,
        spread=statistics.pstdev(finite) if len(finite) == len(losses) and losses else None,
        rise=_rise(losses),
        score=score,
    )


def _finite(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
