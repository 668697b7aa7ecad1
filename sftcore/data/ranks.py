"""Rows distributed to the processes (ranks) of a run: each row to one of them, and as many batches to every one.

accelerate makes the last batches even by repeating rows; without that, a rank that has run out of rows leaves the
others waiting for it. Here it takes part with a batch whose labels are all -100: such a batch weighs nothing in a loss
that is divided by the supervised tokens of all ranks, and it reaches every parameter, so that no gradient is missing.

Seven rows, two ranks, batches of two:

    rank 0    0 1    4 5
    rank 1    2 3    6 -      padded with a row in evaluations alone, whose logits are gathered by row
"""

from __future__ import annotations

import atexit
import itertools
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from attrs import define, field, frozen

from sftcore.config.processes import tensor_parallel_size
from sftcore.core.errors import ConflictError, DataError
from sftcore.core.types import IGNORED

if TYPE_CHECKING:
    from datasets import IterableDataset

    from sftcore.config.sft_config import SFTConfig

Batch: TypeAlias = "dict[str, Any]"
Collate: TypeAlias = "Callable[[list[Any]], Batch]"
T = TypeVar("T")

ROW_NUMBER = "_sftcore_row"
"""A column of the rows of a stream that is evaluated by several processes: where the row stands among all rows."""
_FURTHER = 1 << 40
"""More rows than one file, or one source of several, may have."""


@frozen
class Rank:
    """One of `count` processes to which rows are distributed."""

    index: int = 0
    count: int = 1

    def own(self, numbers: Sequence[int]) -> list[int]:
        """The places of those numbers whose rows are this rank's.

        >>> Rank(1, 3).own([3, 4, 5, 6, 7])
        [1, 4]
        """
        return [place for place, number in enumerate(numbers) if number % self.count == self.index]


def shares_of_batches(args: SFTConfig) -> tuple[int, int]:
    """Among how many processes a batch is split, and how many have batches of their own.

    With `split_batches` accelerate gives each process its part of one batch; processes that a model is split among (tp)
    read the same.
    """
    if args.accelerator_config.split_batches:
        return args.world_size, 1
    if args.accelerator_config.dispatch_batches:
        return 1, args.world_size
    return 1, rank_of(args).count


def rank_of(args: SFTConfig) -> Rank:
    """The rank of this process among those that read different rows; the only one where accelerate sends batches."""
    config = args.accelerator_config
    if config.dispatch_batches or config.split_batches:
        return Rank()
    together = tensor_parallel_size(args.model_init_kwargs, args.world_size)
    if args.parallelism_config is not None:
        together = max(together, args.parallelism_config.tp_size)
    return Rank(args.process_index // together, args.world_size // together)


def shared_folder(args: SFTConfig) -> Path | None:
    """A folder of this run that all its processes on a machine know, removed when they end; None for a single process.

    The first process tells its name to the others: a short collective at the start, which all of them reach.
    """
    if args.world_size == 1:
        return None
    from accelerate.utils import broadcast_object_list

    names: list[str] = broadcast_object_list([f"sftcore-{secrets.token_hex(16)}"])
    folder = Path(tempfile.gettempdir()) / names[0]
    folder.mkdir(mode=0o700, exist_ok=True)
    # the processes that still have a file of it mapped keep that until they end
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# --- Decisions that all ranks take alike -----------------------------------------------------------------------------
def decided_by_first(decide: Callable[[], T]) -> T:
    """What `decide` gives in the first process, in all of them; the others do not call it.

    With `cpu_ram_efficient_loading` that one alone holds a model's weights until they are sharded: the others hold
    zeros (transformers 5.17) or tensors on the meta device. All processes have to call this together.
    """
    if not _are_several():
        return decide()
    import torch
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [decide() if torch.distributed.get_rank() == 0 else None]
    answer: T = broadcast_object_list(found)[0]
    return answer


def first_reason(reason: str) -> str:
    """The first text that is not empty among those of all processes, so that none goes on where another stops."""
    if not _are_several():
        return reason
    from accelerate.utils import gather_object

    return next(filter(None, gather_object([reason])), "")


def _are_several() -> bool:
    import torch

    return bool(torch.distributed.is_available() and torch.distributed.is_initialized())


# --- Batches of a map-style set ---------------------------------------------------------------------------------------
class EmptyBatch(list[int]):
    """The row numbers of a batch without rows. It is true, because accelerate passes over batches that are false."""

    def __bool__(self) -> bool:
        return True


@define
class EvenBatches:
    """Batches of row numbers, with empty ones at the end until every rank has as many."""

    batches: Any
    num_ranks: int

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches
        for _ in range(len(self.batches), len(self)):
            yield EmptyBatch()

    def __len__(self) -> int:
        return len(self.batches) + -len(self.batches) % self.num_ranks

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "batches":
            raise AttributeError(name)
        return getattr(self.batches, name)  # accelerate asks for the sampler, the batch size and drop_last


@define
class RowPadding:
    """A collator that can make a batch of no rows, and pads batches to `size` rows.

    The padding is `row`, or the first row of the batch, with labels that do not count.
    """

    collate: Collate
    row: Any = None
    size: int = 1

    def __call__(self, rows: list[Any]) -> Batch:
        missing = max(self.size, 1) - len(rows)
        if missing <= 0:
            return self.collate(rows)
        if not rows:
            return without_weight(self.collate([self.row] * missing))
        filled = self.collate([*rows, *[rows[0]] * missing])
        labels = filled.get("labels")
        if labels is None or len(labels) != len(rows) + missing:
            return self.collate(rows)  # rows laid end to end are one row, whatever their number
        labels[len(rows) :] = IGNORED
        return filled


def without_weight(batch: Mapping[str, Any]) -> Batch:
    """This batch with labels that are all -100, so that none of its tokens counts.

    Raises:
        DataError: it has no labels.
    """
    labels = batch.get("labels")
    if labels is None:
        raise DataError(
            "a process has no rows left for the last batch, and the collator gives no labels to mask.",
            fix="Set dataloader_drop_last: true, or give labels.",
        )
    return {**batch, "labels": labels.new_full(labels.shape, IGNORED), "num_tokens": labels.new_zeros(())}


def even_batches(loader: Any, *, fill_rows: bool) -> tuple[int, int] | None:
    """Give every rank as many batches as the others, of a map-style set that accelerate has prepared, in place.

    Returns how many batches with rows there are for how many ranks; None where the loader is left as it is.

    Args:
        loader: from `Accelerator.prepare`; where that did not distribute whole batches, it is left as it is.
        fill_rows: pad the last batches to the batch size too.
    """
    from accelerate.data_loader import BatchSamplerShard

    shard = getattr(loader, "batch_sampler", None)
    if not isinstance(shard, BatchSamplerShard) or shard.num_processes == 1 or shard.split_batches or shard.drop_last:
        return None
    shard.batch_sampler = EvenBatches(shard.batch_sampler, shard.num_processes)
    shard.even_batches = False
    base = loader.base_dataloader
    base.collate_fn = RowPadding(base.collate_fn, loader.dataset[0], shard.batch_size if fill_rows else 1)
    return len(shard.batch_sampler.batches), shard.num_processes


# --- Streams ----------------------------------------------------------------------------------------------------------
def shard_source(source: IterableDataset, rank: Rank) -> tuple[IterableDataset, Rank]:
    """A raw stream, and the rank by whose number its rows are still to be chosen.

    Where the files divide evenly among the ranks, each reads its own. Else all read everything and take rows by number,
    as they do of a stream's first rows (`take`), which each file would be asked for its own part of.
    """
    if rank.count == 1 or source._distributed is not None:  # the user has split it by node
        return source, Rank()
    _refuse_other_orders(source)
    if source.num_shards % rank.count == 0 and "Take" not in type(source._ex_iterable).__name__:
        return source.shard(num_shards=rank.count, index=rank.index), Rank()
    return source, rank


@frozen
class Numbering:
    """Where the rows that a rank reads stand among the rows of all ranks: at `first + place * step`.

    first: of the row at place 0, counted as the rank itself counts. step: from one to the next.
    """

    first: int = 0
    step: int = 1

    @classmethod
    def of(cls, source: IterableDataset, rank: Rank, left: Rank, source_place: int = 0) -> Numbering:
        """That of a stream which `shard_source` has left to be distributed by row as `left`.

        Args:
            source: the stream before that.
            rank: the rank that reads it.
            left: what `shard_source` gave.
            source_place: the place of the stream among several that are read one after another.
        """
        before = source_place * _FURTHER * (1 << 10)
        if left.count > 1 or rank.count == 1:
            return cls(before)
        if (split := source._distributed) is None or source._ex_iterable.num_shards % split.world_size == 0:
            return cls(before + (rank.index if split is None else split.rank) * _FURTHER)
        return cls(before + split.rank, split.world_size)

    def __call__(self, place: int) -> int:
        return self.first + place * self.step


def _refuse_other_orders(source: IterableDataset) -> None:
    """Require that the ranks read this stream in one order, because they take their rows by number.

    Raises:
        DataError: it is shuffled without a seed.
    """
    from accelerate.utils import gather_object

    states = [str(generator.bit_generator.state) for generator in _generators(source._ex_iterable)]
    if len(set(gather_object([str(states)]))) > 1:
        raise DataError(
            "the stream is shuffled without a seed, so each process would read its rows in another order.",
            fix="Give one: shuffle(seed=42).",
        )


def _generators(stage: Any) -> Iterator[Any]:
    """The random generators of a stream's stages (attributes of datasets 4.8 and 5.2)."""
    if hasattr(getattr(stage, "generator", None), "bit_generator"):
        yield stage.generator
    inner = getattr(stage, "ex_iterable", None)
    for one in [*([] if inner is None else [inner]), *getattr(stage, "ex_iterables", ())]:
        yield from _generators(one)


def split_stream(dataset: IterableDataset, rank: Rank) -> IterableDataset:
    """A stream that nobody has prepared or split, as the part of it that this rank reads.

    Raises:
        DataError: it is shuffled without a seed.
    """
    from datasets.distributed import split_dataset_by_node

    if dataset._distributed is not None:
        return dataset
    _refuse_other_orders(dataset)
    part: IterableDataset = split_dataset_by_node(dataset, rank.index, rank.count)
    return part


def keep_shards(loader: Any, rank: Rank) -> None:
    """Let accelerate's shard of a stream that is distributed already pass every row, in place.

    Raises:
        ConflictError: accelerate would distribute it among other ranks.
    """
    from accelerate.data_loader import IterableDatasetShard

    shard = loader.dataset
    if not isinstance(shard, IterableDatasetShard) or shard.num_processes != rank.count:
        raise ConflictError(
            f"the stream is distributed to {rank.count} processes, which is not how the model is split among them.",
            fix="Use a map-style data set (load_dataset without streaming).",
        )
    shard.batch_size, shard.num_processes, shard.process_index = 1, 1, 0


@define(slots=False)
class StandIn:
    """What stands in for a loader: all attributes that it does not have itself are the loader's."""

    loader: Any

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)


@define(slots=False)
class SyncedLoader(StandIn):
    """The loader of a stream, in which a rank that has run out of rows gets batches without weight until all have."""

    sync: BatchSync

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while found := self.sync.padded_to_all(list(itertools.islice(batches, 1))):
            yield found[0]


@define
class BatchSync:
    """Brings all ranks to the same number of batches, or a single process to as many as a step has.

    `make_batch` makes one for a rank that never had any. `with_rows` says of each batch that was asked for last how
    many ranks have rows for it.
    """

    accelerator: Any = None
    make_batch: Callable[[], Batch] | None = None
    with_rows: list[int] = field(factory=list, init=False)
    _last: Batch | None = None

    def padded_to_all(self, batches: list[Batch], *, at_least: int = 0) -> list[Batch]:
        """These batches, followed by batches without weight up to the number of the rank that has the most.

        If any rank has one, every rank gets `at_least` so many.
        """
        counts = [len(batches)]
        if self.accelerator is not None:
            import torch

            # filled on the device: a tensor made from Python's number would be one wait more in each step
            own = torch.full((1,), len(batches), device=self.accelerator.device)
            counts = self.accelerator.gather(own).tolist()
        most = max(counts)
        self.with_rows = [sum(one > place for one in counts) for place in range(max(most, at_least) if most else 0)]
        if batches:
            self._last = batches[-1]
        if len(batches) == max(most, at_least) or not most:
            return batches
        if self._last is None:
            assert self.make_batch is not None
            self._last = self.make_batch()
        return [*batches, *[without_weight(self._last)] * (max(most, at_least) - len(batches))]
