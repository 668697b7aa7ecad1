"""What became of the rows of a run's streams, counted by every process and worker that prepares some."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sftcore.core.visible import visible

if TYPE_CHECKING:
    from sftcore.data.sets import DataPreparation
    from sftcore.data.store.counts import StreamTotal


def reset(data: DataPreparation) -> None:
    """Count from here on: before, rows were read to try things on."""
    for one in data.streams.values():
        one.reset()


def sum_up(data: DataPreparation, world_size: int) -> list[StreamTotal]:
    """Add up the counts of all processes, which call this together: a total for each stream."""
    if not data.streams:
        return []
    every = [{name: one.counts.tolist() for name, one in data.streams.items()}]
    if world_size > 1:
        from accelerate.utils import gather_object

        # processes that hold parts of one model read the same rows
        every = gather_object(every)[:: world_size // data.rank.count]
    return [one.sum_up([counts[name] for counts in every]) for name, one in data.streams.items()]


def say(totals: list[StreamTotal]) -> None:
    """Print what was added up."""
    for one in totals:
        for line in one.lines():
            print(visible(f"data       {line}"), file=sys.stderr)
