"""The loss of every row, added up on the device in the pass of the loss itself, and read when the run logs.

A micro-batch leaves one number for each of its documents on the device. Which rows those are, and how many of their
tokens count, the host knows from the collator. Nobody waits for the device but the log, which does anyway.

Shapes: N supervised positions, D documents of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import define, evolve, field, frozen

from sftcore.train.account.measured import Measured, read_met
from sftcore.util.warned import warn

if TYPE_CHECKING:
    import torch

    from sftcore.data.account.in_batch import BatchRows
    from sftcore.data.host_facts import HostFacts
    from sftcore.train.account.census import Census


@frozen(eq=False)
class _Micro:
    """One micro-batch: the rows of the set in it, where they are known; its documents, their losses, and when it was.

    Nothing else of the batch is held, least of all on the device.
    """

    rows: Sequence[int] | None
    documents: BatchRows
    losses_D: torch.Tensor
    epoch: int

    @classmethod
    def of(cls, rows: Sequence[int] | None, documents: BatchRows, losses_N: torch.Tensor, epoch: int) -> _Micro:
        """Add up the losses of each document."""
        import torch

        segments = documents.segments
        assert segments is not None
        losses_D = torch.zeros(len(documents.lengths), device=losses_N.device)
        losses_D.index_add_(0, segments.to(losses_N.device), losses_N.float())
        return cls(rows, evolve(documents, segments=None), losses_D, epoch)


@define(eq=False)
class RowLosses:
    """Collects the loss of each row that a run trains on, and of each source.

    census: the examples of the training set; None where nothing is collected. gather: what all processes that read
    different rows give, in a list. leads: whether this process keeps what all have found. first: whether losses are
    looked for still; where a run has none it is said once.
    """

    census: Census | None
    gather: Callable[[Any], list[Any]]
    leads: bool
    measured: Measured = field(init=False)
    tokens: dict[str, int] = field(factory=dict, init=False)
    since_log: dict[str, tuple[float, float]] = field(factory=dict, init=False)
    _rows: dict[int, Sequence[int] | None] = field(factory=dict, init=False)
    _pending: list[_Micro] = field(factory=list, init=False)
    _missed: str = field(default="", init=False)
    _said: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget the last call of `train`."""
        self.measured = Measured()
        self.tokens, self.since_log, self._rows, self._pending, self._missed = {}, {}, {}, [], ""

    # --- In a step --------------------------------------------------------------------------------------------------
    def drawn(self, facts: Sequence[HostFacts | None], rows: Sequence[Sequence[int] | None]) -> None:
        """The micro-batches of a step were drawn, with these rows of the set, None where they are not known."""
        self._rows = {id(one): some for one, some in zip(facts, rows, strict=True) if one is not None}

    def mark(self) -> int:
        """What `put_back` takes where the step that begins is to count for nothing."""
        return len(self._pending)

    def put_back(self, mark: int) -> None:
        """Forget what was collected since."""
        del self._pending[mark:]

    def add(self, losses_N: torch.Tensor | None, facts: HostFacts | None, epoch: int) -> None:
        """Take the losses of one micro-batch, (N,) float32 on the device, once; nothing leaves the device."""
        if self.census is None:
            return
        if losses_N is None:
            self._missed = self._missed or "the loss gives none (LossOutput.per_token)"
            return
        if facts is None or facts.rows is None or id(facts) not in self._rows:
            if len(losses_N):
                self._missed = self._missed or "batches do not show which rows they were made of"
            return
        self._pending.append(_Micro.of(self._rows.pop(id(facts)), facts.rows, losses_N, epoch))

    # --- Between steps ----------------------------------------------------------------------------------------------
    def collect(self) -> None:
        """Read what is on the device; all processes call this together."""
        if self.census is None:
            return
        every = self.gather(self._found())
        for epoch, ids, told, sums, weights, supervised, lengths in (one for some in every for one in some):
            ids = self.census.numbers(ids, told)
            if self.leads:
                self.measured.add(epoch, ids, sums, weights, supervised)
            for name, chosen in self.census.by_source(ids):
                total, weight = self.since_log.get(name, (0.0, 0.0))
                self.since_log[name] = total + float(sums[chosen].sum()), weight + float(weights[chosen].sum())
                self.tokens[name] = self.tokens.get(name, 0) + int(lengths[chosen].sum())
        self._say(any(every))

    def logged(self) -> dict[str, float]:
        """loss/NAME and tokens/NAME of each source since the last call, where there are several."""
        if self.census is None or len(self.census.names) < 2 or not self.since_log:
            return {}
        losses = {f"loss/{name}": total / weight for name, (total, weight) in self.since_log.items() if weight}
        self.since_log = {}
        return {**losses, **{f"tokens/{name}": float(count) for name, count in self.tokens.items()}}

    def _found(self) -> list[tuple[Any, ...]]:
        """By epoch: ids of examples, and of each its sum, weight, supervised tokens and tokens."""
        import torch

        pending, self._pending = self._pending, []
        if not pending or self.census is None:
            return []
        losses = torch.cat([one.losses_D.float() for one in pending]).cpu().numpy().astype(np.float64)
        ends = np.cumsum([len(one.documents.lengths) for one in pending])
        found = []
        for one, sums in zip(pending, np.split(losses, ends[:-1]), strict=True):
            documents = one.documents
            ids = self.census.ids(one.rows, documents.counts)
            if ids is None and documents.told is None:
                self._missed = self._missed or "batches do not show which rows they were made of"
                continue
            told = documents.told if ids is None else None
            found.append((one.epoch, ids, told, sums, documents.weights, documents.supervised, documents.lengths))
        return found

    def _say(self, any_found: bool) -> None:
        self._said = self._said or any_found
        if self._missed and not self._said:
            self._said = True
            if self.leads:
                warn(f"rows.parquet has no losses of rows: {self._missed}.")

    # --- Checkpoints ------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """What belongs to the next log, as JSON takes it; call `collect` before."""
        return {"tokens": self.tokens, "since_log": {name: list(one) for name, one in self.since_log.items()}}

    def write(self, folder: Path) -> None:
        """Write what was measured into a checkpoint.

        Raises:
            OSError: what the disk said.
        """
        if self.leads and self.census is not None:
            self.measured.write(folder, self.census.told())

    def restore(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on from what a checkpoint holds."""
        if self.census is None:
            return
        self.census.numbers(None, read_met(folder))
        measured = Measured.read(folder) if self.leads else None
        self.tokens = dict(state.get("tokens", {}))
        self.since_log = {name: (one[0], one[1]) for name, one in state.get("since_log", {}).items()}
        if measured is not None:
            self.measured = measured
