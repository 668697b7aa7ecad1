"""What a run says of itself: its plan before the first step, its outcome after the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftcore.data.ranks import shares_of_batches
from sftcore.model.attention import running_attention
from sftcore.model.unwrap import num_weights
from sftcore.util.shown import counted

if TYPE_CHECKING:
    from sftcore.train.view import RunView

_WITHOUT_WARM_UP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules that do not read how long to warm up."""


def plan_lines(trainer: RunView) -> list[str]:
    """The plan, a line for each thing that a user may want to change; every derived number is said once."""
    args, setup = trainer.args, trainer.setup
    model = trainer.loaded.model
    total = sum(num_weights(parameter) for parameter in model.parameters())
    trainable = sum(num_weights(parameter) for parameter in model.parameters() if parameter.requires_grad)
    name = setup.plan.model.name or f"{type(model).__name__} (passed in)"
    formats = {one.entry.name for one in trainer.data.formats.values()}
    bound = [f"{one.entry.kind} {one.entry.name}" for one in setup.plugins.bound if one.entry.kind != "format"]
    plugins = [*(f"format {found}" for found in sorted(formats)), *bound]
    return [
        f"model      {name}: {total / 1e6:,.1f}M parameters, {trainable / 1e6:,.2f}M trained, {model.dtype}",
        f"plugins    {', '.join(plugins)}",
        *(f"attention  {one}" for one in attention_lines(trainer)),
        *(f"note       {note}" for note in trainer.loaded.notes),
        *(f"data       {line}" for ledger in trainer.data.ledgers for line in ledger.lines()),
        *(f"data       {note}" for note in trainer.data.notes),
        *([f"documents  {trainer.shared_rows.proof}"] if trainer.shared_rows.proof else []),
        f"length     {_length(trainer)}",
        f"steps      {_steps(args, trainer.state.max_steps)}, "
        f"learning rate {args.learning_rate:g} {args.lr_scheduler_type.value}"
        f"{_warm_up(args, trainer.state.max_steps)}, seed {args.seed}",
        f"precision  {_precision(trainer)} on {args.device}",
        f"output     {args.output_dir}",
    ]


def attention_lines(trainer: RunView) -> list[str]:
    """The attention that the model runs, where the run's plugin does not say it all."""
    running, backend = running_attention(trainer.loaded.model), trainer.setup.plan.attention
    return [] if backend is not None and backend.implementation == running else [f"{running}, the model's own"]


def _steps(args: Any, steps: int) -> str:
    """The steps, and the rows of each: of a batch, of those that are accumulated, and of all processes."""
    batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    shared, processes = shares_of_batches(args)
    factors = [
        *([f"{accumulated} accumulated"] if accumulated > 1 else []),
        *([f"{processes} processes"] if processes > 1 else []),
    ]
    said = [" x ".join([str(batch), *factors])] if factors else []
    said += [f"each batch is split among {shared} processes"] if shared > 1 else []
    rows, how = counted(batch * accumulated * processes, "row"), f" ({', '.join(said)})" if said else ""
    return f"{steps:,}, {'each ' if steps > 1 else ''}of {rows}{how}"


def _warm_up(args: Any, steps: int) -> str:
    """That the run ends before its learning rate is reached; empty where it is reached, or nothing warms up."""
    warm_up = args.get_warmup_steps(steps)
    if not warm_up or warm_up < steps or args.lr_scheduler_type.value in _WITHOUT_WARM_UP:
        return ""
    return f" (never reached: the warm-up takes {counted(warm_up, 'step')})"


def _length(trainer: RunView) -> str:
    wanted, taken = trainer.args.max_length, trainer.data.max_length
    if taken is None:
        return "rows are not cut (max_length is None)"
    if wanted == taken:
        return f"max_length {taken}"
    if taken != trainer.data.tokenizer.model_max_length:
        return f"max_length {taken}: the model has learned no more positions (configured: {wanted})"
    return f"max_length {taken}: the smaller of the configured {wanted} and the tokenizer's {taken}"


def _precision(trainer: RunView) -> str:
    if trainer.args.bf16:
        return "bfloat16 autocast"
    if trainer.args.fp16:
        return "float16 autocast"
    return "no autocast"
