"""The stages before the first step, such as reading rows, told to whoever shows them: a bar of tqdm if nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeAlias

Advance: TypeAlias = Callable[[int], Any]
"""Called with how many more rows (or whatever the unit is) are done."""


class Stages(Protocol):
    """Shows stages."""

    def stage(self, what: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        """Around a stage; `total` is None where nothing is counted."""


_shown: list[Stages] = []


@contextmanager
def shown_by(stages: Stages | None) -> Iterator[None]:
    """Have the stages inside shown by these, or, with None, as they were."""
    if stages is None:
        yield
        return
    _shown.append(stages)
    try:
        yield
    finally:
        _shown.remove(stages)


@contextmanager
def stage(what: str, total: int | None = None, unit: str = "rows") -> Iterator[Advance]:
    """Around a stage of a run; it gives what is called with how many more of `total` are done."""
    if _shown:
        with _shown[-1].stage(what, total, unit) as advance:
            yield advance
    elif total is None:
        yield lambda _: None
    else:
        from datasets.utils import tqdm

        with tqdm(total=total, desc=what, unit=f" {unit}") as bar:
            yield bar.update
