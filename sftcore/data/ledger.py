"""Counts what became of every row and token of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import asdict, evolve, field, frozen

from sftcore.data.account.outcomes import Outcomes
from sftcore.util.shown import EXAMPLE

if TYPE_CHECKING:
    import pyarrow as pa

    from sftcore.data.packing.pack import Packing

WELL_FILLED = 0.97
"""If blocks are filled less than this on average, the report gives a reason."""

MANY_CUT = 1 / 3
"""From this share of the rows on, the report says that they are too many to be cut."""


@frozen
class PackingCounts:
    """The result of packing. `fill` is the share of the blocks that holds tokens; `reason` explains a low one."""

    strategy: str
    capacity: int
    blocks: int
    fill: float
    rows_split: int
    reason: str = ""

    def lines(self, name: str) -> list[str]:
        """A short report."""
        why = f" ({self.reason})" if self.reason else ""
        lines = [
            f"{name}: packed into {self.blocks:,} blocks of {self.capacity:,} tokens ({self.strategy}), "
            f"{100 * self.fill:.1f}% filled{why}"
        ]
        if self.rows_split:
            lines.append(f"{name}: {self.rows_split:,} rows were split into several pieces, each a document of its own")
        return lines


@frozen
class Dealt:
    """How many rows of a source are in a mixture, of how many that it has, and whether the mixture ends with it.

    `share` is that which was asked for, None where the sources are read one after another.
    """

    name: str
    rows: int
    size: int
    share: float | None = None
    ends: bool = False


@frozen
class Ledger:
    """Counts that add up: rows in = kept + dropped, tokens in = kept + cut + dropped.

    `dropped_rows` holds the numbers of the dropped rows for each reason, counted from 0. `notes` counts the rows that
    each note applies to. A row from which the format returns several examples counts as several, and one from which it
    returns none as one that was dropped; `one_each` says that every row counted once. `tokens_supervised` counts the
    tokens that the loss is computed on, which excludes the first of each document.

    The ledger of a mixture follows those of its sources: it counts the rows that were dealt (`sources`), which stand as
    they were prepared, so that none is cut or dropped.

    `outcomes` says the same of each row; it is kept beside the counts, not among them.
    """

    name: str
    format: str
    rows_in: int
    rows_kept: int
    rows_cut: int
    tokens_in: int
    tokens_kept: int
    tokens_cut: int
    tokens_dropped: int
    tokens_supervised: int
    dropped_rows: Mapping[str, Sequence[int]] = field(factory=dict)
    notes: Mapping[str, int] = field(factory=dict)
    packing: PackingCounts | None = None
    one_each: bool = False
    sources: Sequence[Dealt] = ()
    outcomes: Outcomes | None = field(default=None, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        assert self.rows_in == self.rows_kept + sum(self.dropped.values())
        assert self.tokens_in == self.tokens_kept + self.tokens_cut + self.tokens_dropped

    @property
    def dropped(self) -> dict[str, int]:
        """How many rows were dropped, by reason."""
        return {reason: len(rows) for reason, rows in self.dropped_rows.items()}

    @property
    def first_dropped(self) -> dict[str, int]:
        """The first row dropped for each reason."""
        return {reason: rows[0] for reason, rows in self.dropped_rows.items()}

    @classmethod
    def of(cls, outcomes: pa.Table, *, name: str, format: str) -> Ledger:
        """The counts for a table of outcomes from `Pipeline.encode`, with one row for each example."""
        import pyarrow.compute as pc

        kept = outcomes.filter(pc.is_null(outcomes.column("_dropped")))
        dropped = outcomes.filter(pc.is_valid(outcomes.column("_dropped")))
        dropped_rows: dict[str, list[int]] = {}
        for reason, number in zip(
            dropped.column("_dropped").to_pylist(), dropped.column("_row").to_pylist(), strict=True
        ):
            dropped_rows.setdefault(reason, []).append(number)
        tokens_in = sum(outcomes.column("_tokens_in").to_pylist())
        tokens_dropped = sum(dropped.column("_tokens_in").to_pylist())
        cut = kept.column("_tokens_cut").to_pylist()
        return cls(
            name=name,
            format=format,
            rows_in=len(outcomes),
            rows_kept=len(kept),
            rows_cut=sum(map(bool, cut)),
            tokens_in=tokens_in,
            tokens_kept=tokens_in - sum(cut) - tokens_dropped,
            tokens_cut=sum(cut),
            tokens_dropped=tokens_dropped,
            tokens_supervised=sum(kept.column("_supervised").to_pylist()),
            dropped_rows=dropped_rows,
            notes=_counted(outcomes.column("_notes").to_pylist()),
            one_each=len(outcomes.column("_row").unique()) == len(outcomes),
            outcomes=Outcomes.of(outcomes),
        )

    def given_rows(self, kept: Iterable[int], numbering: Sequence[int] | None = None) -> list[int]:
        """The numbers in the original data of kept rows, given by their index among the kept; valid if `one_each`.

        `numbering` holds the numbers of all rows, dropped ones included, if they differ from the rows' indices.

        >>> ledger = Ledger("train", "text", 5, 3, 0, 9, 9, 0, 0, 9, {"empty": [0, 2]}, one_each=True)
        >>> ledger.given_rows([0, 1, 2])
        [1, 3, 4]
        """
        dropped = {row for rows in self.dropped_rows.values() for row in rows}
        still_there = [row for row in numbering or range(self.rows_in) if row not in dropped]
        return [still_there[place] for place in kept]

    def packed(
        self, packing: Packing, strategy: str, tokens_supervised: int, documents: pa.ChunkedArray | None = None
    ) -> Ledger:
        """The ledger with the result of packing the kept rows; `documents` are those of each block."""
        assert packing.num_tokens == self.tokens_kept
        counts = PackingCounts(
            strategy, packing.capacity, packing.num_blocks, packing.fill, packing.num_split, _why_low(packing)
        )
        outcomes = self.outcomes
        if documents is not None:
            outcomes = (outcomes or Outcomes()).packed(documents)
        return evolve(self, packing=counts, tokens_supervised=tokens_supervised, outcomes=outcomes)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the number of every dropped row."""
        return {**asdict(evolve(self, outcomes=None), filter=_is_count), "dropped": self.dropped}

    def summary(self) -> dict[str, Any]:
        """`as_dict` with the first dropped row of each reason instead of all of them."""
        values = self.as_dict()
        del values["dropped_rows"]
        return {**values, "first_dropped": self.first_dropped}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ledger:
        """Restore a ledger from the output of `as_dict`."""
        packing = values["packing"]
        plain = {key: value for key, value in values.items() if key not in ("packing", "dropped", "sources")}
        sources = tuple(Dealt(**one) for one in values.get("sources", ()))
        return cls(**plain, packing=PackingCounts(**packing) if packing else None, sources=sources)

    def lines(self) -> list[str]:
        """A short report with one fact on each line."""
        if self.sources:
            return [*self._lines_of_mixture(), *(self.packing.lines(self.name) if self.packing else ())]
        lines = [
            f"{self.name}: {self.rows_kept:,} of {self.rows_in:,} rows kept ({self.format}), "
            f"{self.tokens_kept:,} tokens, {self.tokens_supervised:,} supervised"
        ]
        if self.rows_cut:
            share = self.rows_cut / self.rows_kept if self.rows_kept else 0
            advice = (
                f"; that is {share:.0%} of the rows, so raise max_length or split them" if share >= MANY_CUT else ""
            )
            lines.append(
                f"{self.name}: {self.rows_cut:,} rows cut to length, {self.tokens_cut:,} tokens removed{advice}"
            )
        lines += [
            f"{self.name}: {len(rows):,} rows dropped, {reason} (first: row {rows[0]})"
            for reason, rows in self.dropped_rows.items()
        ]
        lines += [f"{self.name}: {count:,} rows: {note}" for note, count in self.notes.items()]
        return [*lines, *(self.packing.lines(self.name) if self.packing else ())]

    def _lines_of_mixture(self) -> Iterator[str]:
        yield (
            f"{self.name}: {self.rows_kept:,} rows of {len(self.sources)} sources {self.format}, "
            f"{self.tokens_kept:,} tokens, {self.tokens_supervised:,} supervised"
        )
        for one in self.sources if self.sources[0].share is not None else ():
            part = f"{one.rows / self.rows_kept:.1%}" if self.rows_kept else "0%"
            if one.rows < one.size:
                used = f"{one.size - one.rows:,} of its {one.size:,} rows are not used"
            elif one.rows > one.size:
                used = f"its {one.size:,} rows come {one.rows / one.size:.1f} times"
            else:
                used = "all of its rows"
            yield f"{one.name}: {one.rows:,} rows of the mixture ({part}), {used}{'; it ends here' * one.ends}"


def _is_count(attribute: Any, _: Any) -> bool:
    return bool(attribute.name != "outcomes")


def _why_low(packing: Packing) -> str:
    if packing.fill >= WELL_FILLED:
        return ""
    if packing.num_tokens > (packing.num_blocks - 1) * packing.capacity * WELL_FILLED:
        return "the rows do not fill the last block"
    large = int((packing.lengths * 2 > packing.capacity).sum())
    share = 100 * large / len(packing.lengths)
    return f"{share:.0f}% of the documents are longer than half a block: raise max_length, or use bfd_split"


def _counted(notes: Iterable[Sequence[str]]) -> dict[str, int]:
    """How many rows have each note. What it gives as an example is the first one's: processes meet different ones."""
    texts: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for row in notes:
        for note in dict.fromkeys(row):
            name = note.partition(EXAMPLE)[0]
            texts.setdefault(name, note)
            counts[name] += 1
    return {texts[name]: count for name, count in counts.items()}
