"""What a recipe's run will take: memory, steps and tokens; and its time, where a few steps are tried."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from sftcore.core.errors import SFTCoreError
from sftcore.train.estimate.rows import batch_rows, largest_batch
from sftcore.train.estimate.steps import Bytes, bytes_of_run

if TYPE_CHECKING:
    from sftcore.train.checked import Checked

_PROBED = 4
"""Steps of a probe, the first of which is left out."""


@frozen
class Estimate:
    """What a run will take on the device that it would use here.

    device: such as "cpu"; memory: the bytes; batch: (rows, tokens) of the largest micro-batch; longest: tokens of its
    longest row; layout: how rows are
    laid out; attention: as transformers names it; rows: of the prepared training set, None of a stream; steps, tokens:
    of the whole run, tokens None where they are not known; seconds: of the training, None without a probe.
    """

    device: str
    memory: Bytes
    batch: tuple[int, int]
    longest: int
    layout: str
    attention: str
    rows: int | None
    steps: int
    tokens: int | None
    seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, sizes in bytes."""
        found = attrs.asdict(self)
        found["memory"]["peak"] = self.memory.peak
        return found


def estimate(checked: Checked, *, probe: bool = False) -> Estimate:
    """Prepare the recipe's rows as its run would, and run two steps on shapes alone.

    Args:
        checked: from `check_recipe`.
        probe: whether to load the model and train a few steps in a folder that is gone afterwards, for the time.

    Raises:
        SFTCoreError: the run would not start; or shapes alone do not tell what it needs.
    """
    from sftcore.train.estimate.sketch import sketch_of
    from sftcore.train.record.dry_run import WRITES_NOTHING
    from sftcore.train.run import trainer_of
    from sftcore.train.trainer import SFTTrainer

    with tempfile.TemporaryDirectory() as aside:
        trainer = trainer_of(checked, {**WRITES_NOTHING, "output_dir": aside}, kind=sketch_of(SFTTrainer))
        found = estimate_of(trainer)
    return attrs.evolve(found, seconds=_probed(checked, found.steps)) if probe else found


def estimate_of(trainer: Any) -> Estimate:
    """The same of a trainer that has its rows, and no weights."""
    args = trainer.args
    rows = batch_rows(trainer, args.train_batch_size)
    memory = bytes_of_run(trainer, rows, _of_evaluation(trainer))
    length, steps = _extent(trainer)
    ledger = trainer.data.ledger_of("train_dataset")
    per_step = args.train_batch_size * args.gradient_accumulation_steps * max(args.world_size, 1)
    epochs = None if not length else steps * per_step / length
    return Estimate(
        device=args.device.type,
        memory=memory,
        batch=(len(rows), _tokens(rows, flattened=trainer.padding_free)),
        longest=max(len(one["input_ids"]) for one in rows),
        layout="packed" if trainer.packed else "end to end" if trainer.padding_free else "padded",
        attention=str(getattr(trainer.model.config, "_attn_implementation", "")),
        rows=length,
        steps=steps,
        tokens=round(ledger.tokens_kept * epochs) if ledger and epochs is not None else None,
    )


def _tokens(rows: Iterable[Mapping[str, Any]], *, flattened: bool) -> int:
    lengths = [len(one["input_ids"]) for one in rows]
    return sum(lengths) if flattened else max(lengths) * len(lengths)


def _of_evaluation(trainer: Any) -> list[Any]:
    """The largest batch that is evaluated during the run, none where nothing is."""
    args = trainer.args
    if trainer.eval_dataset is None or str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
        return []
    given = trainer.eval_dataset
    batches = [
        largest_batch(one, args.eval_batch_size, flattened=trainer.padding_free, seed=args.seed)
        for one in (given.values() if isinstance(given, Mapping) else [given])
    ]
    return max(batches, key=lambda rows: _tokens(rows, flattened=trainer.padding_free))


def _extent(trainer: Any) -> tuple[int | None, int]:
    """How many rows there are, None in a stream, and how many steps the run takes, as transformers counts them."""
    args, rows = trainer.args, trainer.train_dataset
    if not hasattr(rows, "__len__"):
        return None, args.max_steps
    share = args.train_batch_size * max(args.world_size, 1)
    batches = len(rows) // share if args.dataloader_drop_last else math.ceil(len(rows) / share)
    steps_in_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    return len(rows), args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_in_epoch)


def _probed(checked: Checked, steps: int) -> float:
    """Seconds of so many steps, by the time of a few that are trained."""
    from transformers import TrainerCallback

    from sftcore.train.record.dry_run import WRITES_NOTHING
    from sftcore.train.run import trainer_of

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Notes when each step has ended."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Called after the optimizer's step."""
            if args.device.type == "cuda":
                import torch

                torch.cuda.synchronize()
            self.ends.append(time.monotonic())

    clock = Clock()
    never = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "logging_steps": 1000}
    alone = {"evals_per_epoch": None, "saves_per_epoch": None, "early_stopping_patience": None}
    with tempfile.TemporaryDirectory() as aside:
        changed = {**WRITES_NOTHING, **never, **alone, "output_dir": aside, "max_steps": min(_PROBED, max(steps, 2))}
        trainer = trainer_of(checked, {**changed, "resume_from_checkpoint": None})
        trainer.add_callback(clock)
        trainer.train()
    between = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    if not between:
        raise SFTCoreError("the probe took no two steps, so its time says nothing.", fix="Leave --probe out.")
    return sorted(between)[len(between) // 2] * steps
