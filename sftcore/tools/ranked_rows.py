"""Finds the rows of a run that hurt: by their loss over the epochs, or by what became of them.

Mean and spread of a row over the epochs are what dataset cartography draws (Swayamdipta et al. 2020, arXiv:2009.10795),
with the loss in the place of the probability.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from attrs import asdict, frozen

from sftcore.core.errors import DataError, nearest, quoted
from sftcore.data.account.table import BROKEN, CUT, DROPPED, REFUSED, read_table

if TYPE_CHECKING:
    import pyarrow as pa

What: TypeAlias = Literal["worst", "late", "jumps", "cut", "dropped", "duplicates"]
OF_LOSS = ("worst", "late", "jumps")
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
    rows = table.to_pylist() if source is None else _of_source(table, source, where)
    every = None if what != "duplicates" else table.select(["source", "row"])
    score_of = functools.partial(_worst, mean=_mean_of(table)) if what == "worst" else _SCORES[what]
    scored = [(score, row) for row in rows if (score := score_of(row)) is not None]
    scored.sort(key=lambda one: -one[0])
    chosen = tuple(_ranked_row(row, score, every) for score, row in scored[:worst])
    return Ranking(what, chosen, len(scored), len(table), epochs, facts.get("loss"))


def _of_source(table: pa.Table, source: str, where: str) -> list[dict[str, Any]]:
    """The rows of this source, by its name or by a file.

    Raises:
        DataError: there is none of that name.
    """
    import pyarrow.compute as pc

    names = [one for one in pc.unique(table["source"].cast("string")).to_pylist() if one is not None]
    files = [one for one in pc.unique(table["file"].cast("string")).to_pylist() if one is not None]
    for column, known in (("source", names), ("file", files)):
        fitting = [one for one in known if one == source] or [one for one in known if Path(one).name == source]
        if fitting:
            found = pc.is_in(table[column].cast("string"), value_set=_texts(fitting))
            rows: list[dict[str, Any]] = table.filter(found).to_pylist()
            return rows
    what = f'there is no source "{source}".{nearest(source, [*names, *files])}'
    raise DataError(what, where=where, fix=f"The sources are {quoted(names)}.")


def _texts(values: Sequence[str]) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, pa.string())


# --- Scores: the larger the worse, None for a row that is not of the kind ----------------------------------------
def _worst(row: Mapping[str, Any], mean: float = 0.0) -> float | None:
    """The lowest loss of the row, as if `_MORE` tokens with the mean loss of all rows belonged to it.

    Of few tokens a high loss says little: one unlikely word is enough.
    """
    losses = row["loss"] or []
    if not losses:
        return None
    lowest = min(losses) if all(map(math.isfinite, losses)) else math.inf
    tokens = max(row["loss_tokens"] or [0])
    return (tokens * lowest + _MORE * mean) / (tokens + _MORE) if tokens else lowest


def _mean_of(table: pa.Table) -> float:
    """The mean of the last losses of all rows, as far as they are finite."""
    last = [losses[-1] for losses in table["loss"].to_pylist() if losses]
    finite = [one for one in last if math.isfinite(one)]
    return statistics.fmean(finite) if finite else 0.0


def _late(row: Mapping[str, Any]) -> float | None:
    """The share of its fall that was still ahead of it, on average over the epochs; of two, how little it fell."""
    losses = row["loss"] or []
    if len(losses) < 2 or not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        return None
    if len(losses) == 2:
        return float(losses[1] / losses[0])
    return statistics.fmean((one - losses[-1]) / (losses[0] - losses[-1]) for one in losses)


def _jumps(row: Mapping[str, Any]) -> float | None:
    rise = _rise(row["loss"] or [])
    return rise if rise is not None and rise > 0 else None


def _cut(row: Mapping[str, Any]) -> float | None:
    return float(row["tokens_cut"] or 0) if row["outcome"] == CUT else None


def _dropped(row: Mapping[str, Any]) -> float | None:
    return 0.0 if row["outcome"] in (DROPPED, REFUSED, BROKEN) else None


def _duplicates(row: Mapping[str, Any]) -> float | None:
    return None if row["same_as"] is None else 0.0


_SCORES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "late": _late, "jumps": _jumps, "cut": _cut, "dropped": _dropped, "duplicates": _duplicates,
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
