"""Counts what becomes of the rows of a stream, in whichever process they are prepared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

_FACTS = ("rows_read", "rows_kept", "rows_cut", "tokens_in", "tokens_kept", "tokens_cut", "tokens_supervised")
_UNMET = 2**62
"""Stands for the first row that was left out for a reason while there is none."""


@define(eq=False)
class StreamCounts:
    """The counts of a stream, in memory that the workers of a loader share: each has numbers of its own.

    A row is counted when it is prepared, which is some batches before it is trained on, and again in each epoch.
    `counts` has a row for this process and one for each worker: the facts, then for each reason to leave rows out how
    many those are, and the number of the first; (1 + workers, facts + 2 * reasons) int64.
    """

    name: str
    format: str
    reasons: tuple[str, ...]
    counts: torch.Tensor = field(repr=False)
    total: StreamTotal | None = None

    @classmethod
    def of(cls, name: str, format: str, reasons: Sequence[str], num_workers: int) -> StreamCounts:
        """Counts of nothing yet, for a loader with so many workers."""
        import torch

        reasons = tuple(dict.fromkeys(reasons))
        shape = (1 + num_workers, len(_FACTS) + 2 * len(reasons))
        found = cls(name, format, reasons, torch.zeros(shape, dtype=torch.int64).share_memory_())
        found.reset()
        return found

    def reset(self) -> None:
        """Begin again: what was read before a run, to try things on, is not of the run."""
        self.counts.zero_()
        self.counts[:, len(_FACTS) + 1 :: 2] = _UNMET

    def add(self, outcomes: pa.Table) -> None:
        """Count the rows of a table from `Pipeline.encode`."""
        import numpy as np
        import pyarrow.compute as pc
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        own = self.counts[(0 if worker is None else 1 + worker.id) % len(self.counts)]
        tokens, cut, supervised, numbers = (
            outcomes.column(f"_{name}").to_numpy() for name in ("tokens_in", "tokens_cut", "supervised", "row")
        )
        dropped = outcomes.column("_dropped")
        kept = pc.is_null(dropped).to_numpy()
        facts = [
            len(outcomes), kept.sum(), np.count_nonzero(cut[kept]), tokens.sum(), (tokens - cut)[kept].sum(),
            cut[kept].sum(), supervised[kept].sum(),
        ]  # fmt: skip
        for place, fact in enumerate(facts):
            own[place] += int(fact)
        for place, reason in enumerate(self.reasons):
            left_out = numbers[pc.fill_null(pc.equal(dropped, reason), False).to_numpy()]
            if len(left_out):
                at = len(_FACTS) + 2 * place
                own[at] += len(left_out)
                own[at + 1] = min(int(own[at + 1]), int(left_out.min()))

    def sum_up(self, of_processes: Sequence[Sequence[Sequence[int]]]) -> StreamTotal:
        """Set `total`, given the counts of all processes that read different rows."""
        every = [row for rows in of_processes for row in rows]
        facts = [sum(column) for column in zip(*every, strict=True)]
        # where several read, each numbers the rows of its own part
        alone = sum(row[0] > 0 for row in every) == 1
        dropped, first = {}, {}
        for place, reason in enumerate(self.reasons):
            at = len(_FACTS) + 2 * place
            if facts[at]:
                dropped[reason] = facts[at]
                if alone:
                    first[reason] = min(row[at + 1] for row in every)
        counted = dict(zip(_FACTS, facts, strict=False))
        self.total = StreamTotal(name=self.name, format=self.format, **counted, dropped=dropped, first_dropped=first)
        return self.total


@frozen
class StreamTotal:
    """What became of the rows that were read of a stream, by all processes together.

    `dropped` says how many rows were left out for each reason, `first_dropped` which was the first of them, where one
    process alone has read the stream.
    """

    name: str
    format: str
    rows_read: int
    rows_kept: int
    rows_cut: int
    tokens_in: int
    tokens_kept: int
    tokens_cut: int
    tokens_supervised: int
    dropped: dict[str, int]
    first_dropped: dict[str, int]

    def lines(self) -> list[str]:
        """A short report with one fact on each line."""
        lines = [
            f"{self.name}: {self.rows_read:,} rows read of the stream, {self.rows_kept:,} kept ({self.format}), "
            f"{self.tokens_kept:,} tokens, {self.tokens_supervised:,} supervised"
        ]
        if self.rows_cut:
            lines.append(f"{self.name}: {self.rows_cut:,} rows cut to length, {self.tokens_cut:,} tokens removed")
        for reason, count in self.dropped.items():
            first = f" (first: row {self.first_dropped[reason]:,})" if reason in self.first_dropped else ""
            lines.append(f"{self.name}: {count:,} rows dropped, {reason}{first}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        from attrs import asdict

        return asdict(self)
