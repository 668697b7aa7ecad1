"""transformers' Trainer with rows dealt out to the ranks once each, and losses normalised by the tokens of all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import datasets
import torch
from torch.utils.data import IterableDataset
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalPrediction

from sftcore.core.errors import ConflictError
from sftcore.core.types import IGNORED
from sftcore.data.ranks import (
    Filling,
    Rank,
    Together,
    TogetherToTheEnd,
    even_out,
    keep_dealt,
    rank_of,
    split_stream,
)
from sftcore.model.unwrap import is_peft_model

_SAVES_TOGETHER = "is_distributed_loading_by_transformers"
"""An attribute of transformers' Trainer where all ranks of a split model take part in saving it (5.24, not 5.17)."""


class DealtStream(IterableDataset[Any]):
    """The rows of `source` that this rank takes: every row, or every N-th. accelerate takes it for the rows of all."""

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

    transformers' own draws it from the process's random numbers, which part as soon as dropout asks for as many as a
    batch is long: from then on ranks take rows that another one has, and leave others out.
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


class RankedTrainer(Trainer):
    """See `sftcore.data.ranks` for how rows are dealt out. A subclass has `data`, a DataPreparation."""

    data: Any
    _signature_columns: list[str] | None
    compute_metrics: Any
    _eval_sums: Any = None
    _checkpointing = False

    def __init__(self, **kwargs: Any) -> None:
        args = kwargs["args"]
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = may_leave_some_unused(kwargs["model"])
        self._stream_ends: Together | None = None
        self._ended: Iterator[Any] | None = None
        if args.fsdp and args.world_size == 1:
            raise _nothing_sharded(args)
        super().__init__(**kwargs)
        if args.fsdp and not self.is_fsdp_enabled:
            raise _nothing_sharded(args)
        if self.get_tp_size() > 1 and not hasattr(self, _SAVES_TOGETHER):
            raise ConflictError(
                "this transformers saves a model that is split by tp_plan from one process alone, which would wait for "
                "the others for ever.",
                fix="Install a newer transformers (5.24), or drop tp_plan.",
            )

    # --- Rows of each rank ------------------------------------------------------------------------------------------
    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        rank = rank_of(self.args)
        training = bool(kwargs.get("is_training"))
        if rank.count == 1:
            loader = super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)
            if training and isinstance(dataset, IterableDataset):
                self._stream_ends = Together()
            return loader
        if not isinstance(dataset, IterableDataset):
            loader = super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)
            even_out(loader, fill_rows=not training)
            return loader
        whole = next((whole for stream, whole in self.data.dealt if stream is dataset), None)
        split = isinstance(dataset, datasets.IterableDataset)
        own = split_stream(dataset, rank) if split and whole is None else dataset
        dealt = DealtStream(own, Rank() if split else rank)
        loader = super()._get_dataloader(dealt, description, batch_size, *args, **kwargs)
        keep_dealt(loader, rank)
        base = loader.base_dataloader
        first = iter(dataset if whole is None else whole)
        together = Together(self.accelerator, lambda: self._prepare_input(base.collate_fn([next(first)])))
        if training:
            self._stream_ends = together
        else:
            base.collate_fn = Filling(base.collate_fn, size=batch_size)
            loader.base_dataloader = TogetherToTheEnd(base, together)
        return loader

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, LengthGroupedSampler):
            return GroupedByLength(sampler, self.args.seed if self.args.data_seed is None else self.args.data_seed)
        return sampler

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The batches of one step; those of a stream are as many on every rank, and in every step.

        Where an epoch ends within a step, transformers would add the gradients left over to the next epoch's first.
        """
        if self._stream_ends is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._ended is epoch_iterator:  # transformers asks on until max_steps
            return [], None
        batches = self._stream_ends.evened(list(itertools.islice(epoch_iterator, num_batches)), at_least=num_batches)
        self._ended = epoch_iterator if not batches else None
        return batches, self._get_num_items_in_batch(batches, device)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._checkpointing = True
        try:
            super()._save_checkpoint(*args, **kwargs)
        finally:
            self._checkpointing = False

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model, also where its checkpoints are in parts."""
        if self._checkpointing:
            super().save_model(output_dir, _internal_call)
            return
        if self._is_zero3() and not is_peft_model(self.model):
            # as accelerate does it, which asks for stage3_gather_16bit_weights_on_model_save first
            self._save_whole(output_dir, self.model_wrapped._zero3_consolidated_16bit_state_dict())
            return
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is not None and "SHARDED" in str(plugin.state_dict_type):
            self._save_whole(output_dir, self.accelerator.get_state_dict(self.model))
        super().save_model(output_dir, _internal_call)

    def _is_zero3(self) -> bool:
        """Whether DeepSpeed runs the model, and each process has a part of it."""
        return hasattr(self.model_wrapped, "zero_optimization_partition_weights") and bool(
            self.model_wrapped.zero_optimization_partition_weights()
        )

    def _save_whole(self, output_dir: str | None, state_dict: dict[str, Any] | None) -> None:
        # transformers 5.17 does not ask in _save, and ranks would write over each other; only the first has the weights
        if self.args.should_save and state_dict:
            self._save(output_dir, state_dict=state_dict)

    # --- Losses over the tokens of all ranks ------------------------------------------------------------------------
    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        if not batch_samples or "labels" not in batch_samples[0]:
            return None
        num_items = self._num_items(batch_samples).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            num_items = self.accelerator.gather(num_items).sum()
        return num_items

    @staticmethod
    def _num_items(batches: list[dict[str, Any]]) -> torch.Tensor:
        """The sum of weights over supervised positions, the first of each row left out: () float32."""
        total = torch.zeros(())
        for batch in batches:
            counts = batch["labels"][..., 1:] != -100
            weights = batch.get("weights")
            found = counts.sum() if weights is None else (weights[..., 1:] * counts).sum()
            total = total.to(found.device) + found.float()
        return total

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        # of sharded parameters each rank has its part, which cannot be gathered as a tensor of its own
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _add_eval_loss(self, loss: torch.Tensor, num_items: torch.Tensor) -> None:
        """Count the loss of an evaluation's batch, the mean over `num_items`."""
        items = num_items.to(loss.device).double()
        sums = torch.stack([torch.where(items > 0, loss.detach().double(), 0.0) * items, items])
        self._eval_sums = sums if self._eval_sums is None else self._eval_sums + sums

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """The loop of `evaluate` and `predict`; its loss is the mean over the supervised tokens of all ranks."""
        self._eval_sums = None
        compute, filled = self.compute_metrics, isinstance(vars(dataloader).get("base_dataloader"), TogetherToTheEnd)
        if filled and compute is not None:
            self.compute_metrics = lambda found, **kw: compute(_without_filling(found), **kw)
        try:
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.compute_metrics = compute
        prefix = kwargs.get("metric_key_prefix", args[3] if len(args) > 3 else "eval")
        if self._eval_sums is not None and output.metrics is not None and f"{prefix}_loss" in output.metrics:
            total, items = self.accelerator.reduce(self._eval_sums, reduction="sum").tolist()
            output.metrics[f"{prefix}_loss"] = total / items if items else float("nan")
        if filled and (keep := _rows(output.label_ids)) is not None:
            output = output._replace(predictions=output.predictions[keep], label_ids=output.label_ids[keep])
        return output


def _rows(labels: Any) -> Any:
    """Which rows of gathered labels are rows, and not what fills a batch of a stream up; None where none can be told.

    A stream has no rows without supervised tokens.
    """
    return (labels != IGNORED).any(-1) if getattr(labels, "ndim", 0) == 2 else None


def _without_filling(found: EvalPrediction) -> EvalPrediction:
    keep = _rows(found.label_ids)
    if keep is None:
        return found
    parts = (found.predictions, found.label_ids, found.inputs, found.losses)
    return EvalPrediction(*(one if one is None or len(one) != len(keep) else one[keep] for one in parts))


def _nothing_sharded(args: Any) -> ConflictError:
    return ConflictError(
        f"fsdp is set, and nothing would be sharded among {args.world_size} process(es) on {args.device.type}: "
        "accelerate shards among several, on GPUs.",
        where="SFTConfig",
        fix="Start one for each GPU (sftcore train --nproc, accelerate launch), or drop fsdp.",
    )


def may_leave_some_unused(model: Any) -> bool:
    """Whether a batch may leave parameters that train without a gradient, which DDP must then look for at each step."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    if any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return True
    if getattr(config, "vision_config", None) is None:
        return False
    # a batch without images does not ask the vision tower
    return any("vision" in name or "visual" in name for name, one in model.named_parameters() if one.requires_grad)
