"""Rows distributed to the processes of a run, each row once: loaders, samplers, and the batches of a step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import datasets
import torch
from accelerate.data_loader import DataLoaderDispatcher
from accelerate.utils import broadcast_object_list
from torch.utils.data import IterableDataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from sftcore.core.errors import ConflictError, DataError
from sftcore.data.ranks import (
    ROW_NUMBER,
    BatchSync,
    Numbering,
    Rank,
    RowPadding,
    SyncedLoader,
    even_batches,
    keep_shards,
    rank_of,
    shard_source,
    split_stream,
)
from sftcore.train.parts.streams import sum_up

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sftcore.config.sft_config import SFTConfig
    from sftcore.data.sets import DataPreparation


class RankStream(IterableDataset[Any]):
    """The rows of `source` that this process takes: every row, or every N-th. accelerate takes it for all rows.

    With a `numbering` each has its place among all rows in ROW_NUMBER.
    """

    def __init__(self, source: Any, rank: Rank, numbering: Numbering | None = None) -> None:
        self.source = source
        self._rank, self._numbering = rank, numbering

    def __iter__(self) -> Iterator[Any]:
        taken = itertools.islice(enumerate(self.source), self._rank.index, None, self._rank.count)
        for place, row in taken:
            numbered = self._numbering is not None and isinstance(row, Mapping)
            yield {**row, ROW_NUMBER: self._numbering(place)} if numbered else row  # type: ignore[misc]

    def set_epoch(self, epoch: int) -> None:
        """Have a stream that is shuffled take another order."""
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch)


class GroupedByLength(LengthGroupedSampler):
    """Rows of like length together, in an order that seed and epoch alone decide.

    transformers' own draws it from the process's random numbers, which differ between processes as soon as dropout asks
    for as many as a batch is long: from then on processes take rows that another one has, and leave others out.
    """

    def __init__(self, grouped: LengthGroupedSampler, seed: int) -> None:
        super().__init__(grouped.batch_size, lengths=grouped.lengths)
        self._seed, self._epoch = seed, 0

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(super().__iter__())

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch."""
        self._epoch = epoch


class RowDistribution:
    """Which rows this process reads; `sftcore.data.ranks` describes how they are distributed.

    Args:
        args: rank, world size, seeds.
        accelerator: brings processes to as many batches each.
        data: knows which streams were distributed while they were prepared.
        to_device: a batch moved to this process's device.
    """

    def __init__(
        self,
        args: SFTConfig,
        accelerator: Accelerator,
        data: DataPreparation,
        to_device: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        self._args, self._accelerator, self._data, self._to_device = args, accelerator, data, to_device
        self._stream_ends: BatchSync | None = None
        self._even: tuple[int, int] | None = None
        self._ended: Iterator[Any] | None = None

    def loader(self, make: Callable[[Any], Any], dataset: Any, *, batch_size: int, training: bool) -> Any:
        """The loader of a data set on this process.

        Args:
            make: transformers' own loader of a data set, prepared by accelerate.
            dataset: map-style or a stream.
            batch_size: rows of a full batch.
            training: whether gradients are computed; the last batches of an evaluation are padded, because its logits
                are gathered by row.
        """
        rank, is_stream = rank_of(self._args), isinstance(dataset, IterableDataset)
        if training:
            self._stream_ends = self._even = None
        if rank.count == 1:
            if training and is_stream:
                self._stream_ends = BatchSync()
            return _refusing_unequal(make(dataset))
        if not is_stream:
            loader = make(dataset)
            count = even_batches(loader, fill_rows=not training)
            self._even = count if training else self._even
            return loader
        _, whole, numbered = next((one for one in self._data.shards if one[0] is dataset), (None, None, None))
        loader = make(self._own_rows(dataset, rank, numbered, prepared=whole is not None, training=training))
        keep_shards(loader, rank)
        base = loader.base_dataloader
        first = iter(dataset if whole is None else whole)
        sync = BatchSync(self._accelerator, lambda: self._to_device(base.collate_fn([next(first)])))
        if training:
            self._stream_ends = sync
        else:
            base.collate_fn = RowPadding(base.collate_fn, size=batch_size)
            loader.base_dataloader = SyncedLoader(base, sync)
        return loader

    def _own_rows(self, dataset: Any, rank: Rank, numbered: Any, *, prepared: bool, training: bool) -> RankStream:
        """What this process reads of a stream: as it was prepared for it, or distributed here."""
        if prepared:
            return RankStream(dataset if training or numbered is None else numbered, Rank())
        if not isinstance(dataset, datasets.IterableDataset):
            return RankStream(dataset, rank, None if training else Numbering())
        if training:
            return RankStream(split_stream(dataset, rank), Rank())
        own, left = shard_source(dataset, rank)
        return RankStream(own, left, Numbering.of(dataset, rank, left))

    def sampler(self, sampler: Any) -> Any:
        """The sampler of the training rows, given transformers' own: all processes draw the same order."""
        if isinstance(sampler, LengthGroupedSampler):
            return GroupedByLength(sampler, self._args.seed if self._args.data_seed is None else self._args.data_seed)
        return sampler

    def with_rows(self, first: int, num_batches: int) -> tuple[list[int], int]:
        """Of each batch that was taken last how many processes have rows for it, and of how many.

        Args:
            first: how many batches of the epoch this process had taken before.
            num_batches: how many it has taken now.
        """
        if self._stream_ends is not None:
            return self._stream_ends.with_rows, self._accelerator.num_processes
        batches, ranks = self._even or (0, 1)
        if not batches:
            return [1] * num_batches, 1
        return [min(ranks, max(0, batches - place * ranks)) for place in range(first, first + num_batches)], ranks

    def take(self, epoch_iterator: Iterator[Any], num_batches: int) -> list[Any]:
        """The batches of one step; those of a stream are as many on every process, and in every step.

        Where an epoch ends within a step, transformers would add the gradients left over to the next epoch's first.
        """
        if self._stream_ends is None:
            return list(itertools.islice(epoch_iterator, num_batches))
        if self._ended is epoch_iterator:  # transformers asks on until max_steps
            return []
        batches = self._stream_ends.padded_to_all(
            list(itertools.islice(epoch_iterator, num_batches)), at_least=num_batches
        )
        self._ended = epoch_iterator if not batches else None
        return batches

    def none_kept(self) -> DataError:
        """What to raise where an epoch had no batch; all processes ask for it together."""
        totals = sum_up(self._data, self._args.world_size)
        why = "; ".join(line for one in totals for line in one.lines()[1:])
        return DataError(
            f"the data gave no batch: none of their rows is kept{why and f' ({why})'}.",
            where="train_dataset",
            fix="Look at what becomes of the rows with: sftcore check RECIPE.",
        )


_UNEQUAL = "unequal"


def _refusing_unequal(loader: Any) -> Any:
    """The loader; with `dispatch_batches` all processes refuse batches that accelerate cannot join.

    Only the first process reads rows. Its error would leave the others waiting for what it sends to them.
    """
    if not isinstance(loader, DataLoaderDispatcher):
        return loader
    fetch = loader._fetch_batches

    def refusing(iterator: Iterator[Any]) -> Any:
        try:
            found = fetch(iterator)
        except RuntimeError as error:
            if "batches of different size" not in str(error):
                raise
            # the others ask once more where the last batches may be fewer
            for _ in range(1 if loader._drop_last else 2):
                broadcast_object_list([None, _UNEQUAL])
            raise _unequal() from None
        if loader._stop_iteration == _UNEQUAL:
            raise _unequal()
        return found

    loader._fetch_batches = refusing
    return loader


def _unequal() -> ConflictError:
    return ConflictError(
        "with dispatch_batches accelerate joins the batches of all processes to one, which takes rows of equal length "
        "that are not packed.",
        where="accelerator_config",
        fix="Drop dispatch_batches: each process then reads its own rows, each row once.",
    )
