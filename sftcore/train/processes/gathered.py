"""Predictions of several processes as one process would give them: each row once, in the order of the data set.

What processes predict is gathered one batch after another, rank by rank. Streams are distributed row by row or file by
file, and last batches are padded, so the loader of an evaluation records which row each of its batches holds where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import gather_object
from attrs import define, field
from transformers.trainer_utils import EvalPrediction

from sftcore.data.ranks import ROW_NUMBER, StandIn

if TYPE_CHECKING:
    from accelerate import Accelerator

_READ = "_sftcore_rows"


@define
class WithRows:
    """A collator whose batches remember the numbers of their rows, which it takes out of them: 0 for rows without."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, rows: list[Any]) -> Any:
        numbers = [row.get(ROW_NUMBER, 0) if isinstance(row, Mapping) else 0 for row in rows]
        if any(isinstance(row, Mapping) and ROW_NUMBER in row for row in rows):
            rows = [{name: value for name, value in row.items() if name != ROW_NUMBER} for row in rows]
        batch = self.collate(rows)
        if hasattr(batch, "__dict__"):
            vars(batch)[_READ] = numbers
        return batch


@define(slots=False)
class RecordedLoader(StandIn):
    """The loader of an evaluation, which keeps what each batch that it gave holds.

    read: of each batch the number of each row, None for a row of padding; None of a batch whose rows are not known.
    """

    read: list[list[int | None] | None] = field(factory=list, init=False)

    def __iter__(self) -> Iterator[Any]:
        self.read = []
        for batch in self.loader:
            self.read.append(_rows_of(batch))
            yield batch


def _rows_of(batch: Any) -> list[int | None] | None:
    labels: Any = batch.get("labels") if isinstance(batch, Mapping) else None
    if getattr(labels, "ndim", 0) != 2:
        return None
    # a batch that was put in for a process without rows comes from no collator
    numbers: list[int] = getattr(batch, "__dict__", {}).get(_READ, [])
    if len(labels) == 1 and len(numbers) > 1:  # rows laid end to end
        return [min(numbers)]
    missing = len(labels) - len(numbers)
    return None if missing < 0 else [*numbers, *[None] * missing]


def inside(loader: Any) -> Any:
    """torch's own loader within a loader that accelerate has prepared and we have wrapped."""
    base = getattr(loader, "base_dataloader", loader)
    while isinstance(base, StandIn):
        base = base.loader
    return base


def record_rows(loader: Any, accelerator: Accelerator) -> None:
    """Have the loader of an evaluation record its rows, where several processes gather theirs, in place."""
    if accelerator.num_processes > 1 and isinstance(loader, DataLoaderShard):
        base = inside(loader)
        base.collate_fn = WithRows(base.collate_fn)
        loader.base_dataloader = RecordedLoader(loader.base_dataloader)


@define
class GatheredRows:
    """Brings what was gathered from a loader into order.

    loader: of the evaluation; where it records nothing, everything stays as it is.
    concatenated: whether outputs come as one array, or as a list with those of each batch.
    """

    loader: Any
    accelerator: Accelerator
    concatenated: bool = True
    _measured: int = field(default=0, init=False)

    def measured(self, compute: Callable[..., Any], *, each_batch: bool) -> Callable[..., Any]:
        """`compute_metrics` of rows in order; `each_batch` where it is called for every batch."""
        if self._record is None:
            return compute

        def compute_metrics(found: EvalPrediction, **kwargs: Any) -> Any:
            only = self._measured if each_batch else None
            self._measured += 1
            parts = self._in_order((found.predictions, found.label_ids, found.inputs, found.losses), only=only)
            return compute(EvalPrediction(*parts), **kwargs)

        return compute_metrics

    def in_order(self, output: Any) -> Any:
        """What `evaluation_loop` gives, with its rows in order."""
        if self._record is None or (output.predictions is None and output.label_ids is None):
            return output
        predictions, labels = self._in_order((output.predictions, output.label_ids))
        return output._replace(predictions=predictions, label_ids=labels)

    @property
    def _record(self) -> RecordedLoader | None:
        found = vars(self.loader).get("base_dataloader") if hasattr(self.loader, "__dict__") else None
        return found if isinstance(found, RecordedLoader) else None

    def _in_order(self, parts: Sequence[Any], *, only: int | None = None) -> Sequence[Any]:
        assert self._record is not None
        mine = self._record.read
        every = gather_object([mine if only is None else mine[only : only + 1]])
        steps = list(zip(*every, strict=False))
        if len({len(one) for one in every}) > 1 or any(rows is None for step in steps for rows in step):
            return parts
        gathered = [[number for rows in step for number in rows] for step in steps]
        if only is None and not self.concatenated:
            return [_each(part, gathered) for part in parts]
        return _picked_alike(parts, [number for step in gathered for number in step])


def _each(batches: Any, gathered: list[list[int | None]]) -> Any:
    if not isinstance(batches, list) or len(batches) != len(gathered):
        return batches
    return [_picked_alike([one], numbers)[0] for one, numbers in zip(batches, gathered, strict=True)]


def _picked_alike(parts: Sequence[Any], numbers: Sequence[int | None]) -> Sequence[Any]:
    """The rows of each part that count, by their numbers; parts of other lengths, as losses may be, stay as they are.

    accelerate leaves out padding at the end where it knows how many rows there are, so parts may be shorter.
    """
    length = next((len(one) for part in (parts[1], parts[0]) for one in _arrays(part)), 0) if len(parts) > 1 else None
    length = next((len(one) for one in _arrays(parts[0])), 0) if length is None else length
    counted = [place for place, number in enumerate(numbers[:length]) if number is not None]
    order = np.array(sorted(counted, key=lambda place: numbers[place]), dtype=np.int64)  # type: ignore[arg-type,return-value]
    if length > len(numbers) or np.array_equal(order, np.arange(length)):
        return parts
    return [_picked(part, order, length) for part in parts]


def _arrays(tree: Any) -> Iterator[Any]:
    """The arrays in what a model or a user's function may give: one, or tuples, lists and mappings of them."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for one in tree:
            yield from _arrays(one)
    elif getattr(tree, "ndim", 0):
        yield tree


def _picked(tree: Any, order: np.ndarray, length: int) -> Any:
    if isinstance(tree, Mapping):
        return type(tree)({name: _picked(one, order, length) for name, one in tree.items()})  # type: ignore[call-arg]
    if isinstance(tree, (list, tuple)):
        return type(tree)(_picked(one, order, length) for one in tree)
    if not getattr(tree, "ndim", 0) or len(tree) != length:
        return tree
    return tree[order] if isinstance(tree, np.ndarray) else tree[order.tolist()]
