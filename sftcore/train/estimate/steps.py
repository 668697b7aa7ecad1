"""Takes two steps and an evaluation of a run on shapes alone, and counts the bytes that are alive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from attrs import frozen

from sftcore.core.errors import ModelError
from sftcore.model.memory.spared import spared_memory
from sftcore.train.estimate.live import LiveBytes, bytes_of

_MICRO_BATCHES = 2
"""Of a step with more, the second and all later ones need the same."""


@frozen
class Bytes:
    """What a run's tensors take on a device, in bytes.

    weights: of the whole model, adapter and copies included; trained: of these what trains; optimizer: its state;
    gradients: when all are there; activations: what forward and backward pass need beyond weights, optimizer and
    gradients from before; training, evaluation: the most at one time (0: no evaluation); peak: the larger of the two.
    """

    weights: int
    trained: int
    optimizer: int
    gradients: int
    activations: int
    training: int
    evaluation: int

    @property
    def peak(self) -> int:
        """The most that are alive at one time."""
        return max(self.training, self.evaluation)


def bytes_of_run(trainer: Any, rows: Sequence[Any], eval_rows: Sequence[Any] = ()) -> Bytes:
    """Run the largest micro-batch `rows` through two steps of a sketch, and `eval_rows` through an evaluation.

    Raises:
        ModelError: the model does something that depends on values, such as routing tokens to experts.
    """
    training, evaluated = (trainer.collated(list(one)) if one else None for one in (rows, eval_rows))
    try:
        with trainer.shapes, _as_in_training(trainer):
            return _measured(trainer, training, evaluated)
    except Exception as error:
        # torch names them so where a value or a size that depends on one is asked for
        if type(error).__module__.startswith("torch._subclasses") or "fake" in str(error).lower():
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise ModelError(
                f"what this run does depends on values, and its shapes alone cannot be run ({reason[:200]}).",
                where="estimate",
                fix="Measure it: train a few steps (max_steps: 3), and look at the memory that is taken.",
            ) from error
        raise


def _measured(trainer: Any, batch: Any, eval_batch: Any) -> Bytes:
    model, args = trainer.model, trainer.args
    live = LiveBytes()
    held = [*model.parameters(), *model.buffers(), *_packed(model)]
    for one in held:
        live.see(one)
    if trainer.in_backward is None:
        trainer.optimizer = None  # of an earlier estimate
    with live:
        optimizer = trainer.create_optimizer()
        copies = [one for group in optimizer.param_groups for one in group["params"]]
        weights = bytes_of([*held, *copies])
        micro_batches = min(args.gradient_accumulation_steps, _MICRO_BATCHES)
        for _ in range(2):  # the first has no state of the optimizer
            live.begin_peak()
            before = live.now
            for _ in range(micro_batches):
                gradients = _pass(trainer, batch)
            forward = live.peak
            if args.max_grad_norm:
                torch.nn.utils.clip_grad_norm_([one for one in copies if one.grad is not None], args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            model.zero_grad()
            training = live.peak
        trained = [one for one in model.parameters() if one.requires_grad]
        evaluation = _evaluated(trainer, eval_batch, live) if eval_batch is not None else 0
    return Bytes(
        weights=weights,
        trained=bytes_of(trained),
        optimizer=max(live.now - weights, 0),
        gradients=gradients,
        activations=max(forward - before - gradients * (micro_batches - 1), 0),
        training=training,
        evaluation=evaluation,
    )  # fmt: skip


def _pass(trainer: Any, collated: Any) -> int:
    """Forward and backward pass of a micro-batch as `training_step` makes them; the bytes of the gradients."""
    batch = trainer.batch(collated)
    with trainer.compute_loss_context_manager(), _in_backward(trainer):
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.ones((), device=trainer.args.device))
        del batch
        loss.backward()
    return bytes_of(one.grad for one in trainer.model.parameters() if one.grad is not None)


def _evaluated(trainer: Any, collated: Any, live: LiveBytes) -> int:
    live.begin_peak()
    trainer.model.eval()
    with torch.no_grad():
        trainer.compute_loss(trainer.model, trainer.batch(collated))
    return live.peak


@contextmanager
def _in_backward(trainer: Any) -> Iterator[None]:
    if trainer.in_backward is None:
        yield
        return
    with trainer.in_backward.training():
        yield


@contextmanager
def _as_in_training(trainer: Any) -> Iterator[None]:
    """What is around the loop of a run, and its model as transformers makes it ready."""
    args, model = trainer.args, trainer.model
    if args.gradient_checkpointing:
        options = dict(args.gradient_checkpointing_kwargs or {}) or None
        if hasattr(model, "activation_checkpointing_enable"):  # the name in newer transformers
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model.train()
    trainer.is_in_train = True
    with ExitStack() as around:
        for one in (trainer.noise.training(), trainer.cache.training(), trainer.kernels.running()):
            around.enter_context(one)
        around.enter_context(spared_memory(trainer.loaded.model, trainer.setup.plan))
        yield


def _packed(model: Any) -> list[torch.Tensor]:
    """Weights of quantised layers, which are no parameters."""
    return [vars(one)["packed"] for one in model.modules() if vars(one).get("packed") is not None]
