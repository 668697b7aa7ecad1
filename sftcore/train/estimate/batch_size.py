"""The largest micro-batch that fits into the memory of the device, for `auto_batch_size`."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sftcore.core.errors import ConflictError
from sftcore.core.visible import visible
from sftcore.data.ranks import decided_by_first
from sftcore.data.store.prune import limit_of

if TYPE_CHECKING:
    from sftcore.config.sft_config import SFTConfig

_SHARE = 0.9
"""Of the memory that is free: what allocators leave between blocks, and libraries take for themselves, is not seen."""


_ARGUMENTS = (
    "model", "data_collator", "train_dataset", "eval_dataset", "processing_class", "compute_loss_func",
    "quantization_config", "peft_config", "formatting_func",
)  # fmt: skip
"""Of a trainer's constructor, those on which it depends what a step needs."""


def fitted(args: SFTConfig, given: Mapping[str, Any], kind: type[Any]) -> SFTConfig:
    """A trainer's configuration, `given` its constructor's arguments by name, with the micro-batch that it asks for.

    `kind` is SFTTrainer.
    """
    if not args.auto_batch_size:
        return args
    return _with_batch_size(args, {name: given[name] for name in _ARGUMENTS}, kind)


def _with_batch_size(args: SFTConfig, given: dict[str, Any], kind: type[Any]) -> SFTConfig:
    """A copy of a run's configuration with the largest micro-batch that fits and divides a step.

    The rows of a step (micro-batch times accumulation) stay what they are. transformers' `auto_find_batch_size` is not
    used: it changes them, begins anew in the middle of a run when memory has run out, and never sees that on a CPU.

    Args:
        args: of the run, which asks for `auto_batch_size`.
        given: the other arguments of the trainer's constructor.
        kind: of trainer.

    Raises:
        ConflictError: not even one row fits.
    """
    from sftcore.train.estimate.rows import batch_rows
    from sftcore.train.estimate.sketch import sketch_of
    from sftcore.train.estimate.steps import bytes_of_run

    wanted, made = args.auto_batch_size, copy.copy(args)
    made.auto_batch_size = False
    trainer = sketch_of(kind)(args=copy.copy(made), **given)
    rows = made.per_device_train_batch_size * made.gradient_accumulation_steps
    limit = limit_of(wanted, where="auto_batch_size") if isinstance(wanted, str) else free_memory(args, given["model"])
    needed: dict[int, int] = {}

    def largest() -> int:
        for size in _divisors(rows):
            trainer.args.gradient_accumulation_steps = rows // size
            needed[size] = bytes_of_run(trainer, batch_rows(trainer, size)).training
            if needed[size] <= limit:
                return size
        return 0

    size = decided_by_first(largest)
    if not size:
        takes = f"a micro-batch of one row would take {needed.get(1, 0) / 2**20:,.1f} MiB"
        raise ConflictError(
            f"{takes}, and {limit / 2**20:,.1f} MiB can be had.",
            where="auto_batch_size",
            fix="See what would fit: sftcore estimate RECIPE --memory SIZE.",
        )
    made.per_device_train_batch_size, made.gradient_accumulation_steps = size, rows // size
    if args.process_index == 0:
        takes = f", which takes about {needed[size] / 2**20:,.1f} of {limit / 2**20:,.1f} MiB" if size in needed else ""
        print(visible(f"batch      {size} rows at a time{takes}; {rows // size} such are a step"), file=sys.stderr)
    return made


def free_memory(args: SFTConfig, model: Any) -> int:
    """Bytes that a run may take on its device: most of what is free, and what the model itself takes already."""
    import torch

    held = 0 if isinstance(model, str) else sum(one.numel() * one.element_size() for one in model.parameters())
    device = args.device
    if device.type == "cuda":
        placed = 0 if isinstance(model, str) or next(model.parameters()).device.type == "cpu" else held
        return int(_SHARE * (torch.cuda.mem_get_info(device)[0] + placed))
    from sftcore.train.estimate.host import host_memory

    return int(_SHARE * (host_memory() + held))


def _divisors(number: int) -> Iterator[int]:
    return (one for one in range(number, 0, -1) if number % one == 0)
