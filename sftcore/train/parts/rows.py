"""Rows distributed to the processes of a run, each row once: loaders, samplers, and the batches of a step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import datasets
import torch
from torch.utils.data import IterableDataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from sftcore.core.errors import DataError
from sftcore.data.ranks import (
    BatchSync,
    Rank,
    RowPadding,
    SyncedLoader,
    even_batches,
    keep_shards,
    rank_of,
    split_stream,
)
from sftcore.train.parts.streams import sum_up

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sftcore.config.sft_config import SFTConfig
    from sftcore.data.sets import DataPreparation


class RankStream(IterableDataset[Any]):
    """The rows of `source` that this process takes: every row, or every N-th. accelerate takes it for all rows."""

    def __init__(self, source: Any, rank: Rank) -> None:
        self.source = source
        self._rank = rank

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.source, self._rank.index, None, self._rank.count)

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
        rank = rank_of(self._args)
        if rank.count == 1:
            if training and isinstance(dataset, IterableDataset):
                self._stream_ends = BatchSync()
            return make(dataset)
        if not isinstance(dataset, IterableDataset):
            loader = make(dataset)
            even_batches(loader, fill_rows=not training)
            return loader
        whole = next((whole for stream, whole in self._data.shards if stream is dataset), None)
        split = isinstance(dataset, datasets.IterableDataset)
        own = split_stream(dataset, rank) if split and whole is None else dataset
        loader = make(RankStream(own, Rank() if split else rank))
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

    def sampler(self, sampler: Any) -> Any:
        """The sampler of the training rows, given transformers' own: all processes draw the same order."""
        if isinstance(sampler, LengthGroupedSampler):
            return GroupedByLength(sampler, self._args.seed if self._args.data_seed is None else self._args.data_seed)
        return sampler

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
