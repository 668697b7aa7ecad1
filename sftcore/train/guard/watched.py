"""transformers' Trainer that looks at every step before it is taken: NaN, Inf, divergence, and signals to stop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from sftcore.core.errors import DivergenceError
from sftcore.train.checkpoint.resumable import ResumableTrainer
from sftcore.train.checkpoint.state import Randomness
from sftcore.train.guard.divergence import LossLevel, Nonfinite, RememberedBatches
from sftcore.train.guard.named_rows import named_rows
from sftcore.train.guard.signals import Listener, StoppedBySignal, how_to_go_on


class WatchedTrainer(ResumableTrainer):
    """All ranks decide together, in one short reduction a step, before the optimizer touches a weight."""

    recorder: Any
    _stopping = 0
    _remembered: RememberedBatches | None = None

    def __init__(self, **kwargs: Any) -> None:
        args = kwargs["args"]
        self.nonfinite = Nonfinite(args.on_nonfinite)
        self._level: LossLevel | None = None
        self._listener = Listener()
        self._losses: list[torch.Tensor] = []
        self._before: tuple[Any, torch.Tensor] = (None, torch.zeros(()))
        super().__init__(**kwargs)
        self.add_callback(_Stopper(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; SIGTERM and SIGINT end the step in progress, save a checkpoint and raise StoppedBySignal.

        Raises:
            DivergenceError: NaN or Inf where `on_nonfinite` is "stop", or divergence where it is looked for.
            StoppedBySignal: a SystemExit with code 143 or 130.
        """
        self._stopping, alone = 0, self.args.save_only_model
        self.nonfinite.restore({"count": 0, "steps": []})
        self._level = _level_of(self.args, self.model)
        try:
            with self._listener.listening():
                return super().train(*args, **kwargs)
        finally:
            self.args.save_only_model = alone

    def _watched(self) -> dict[str, Any]:
        level = self._level
        known = {} if level is None else {"losses": level.losses, "lowest": level.lowest, "first": level.first}
        return {"nonfinite": self.nonfinite.as_dict(), "level": known}

    def _watch_on(self, state: dict[str, Any]) -> None:
        self.nonfinite.restore(state["nonfinite"])
        if self._level is not None and state["level"]:
            for name, value in state["level"].items():
                setattr(self._level, name, value)
        self._record()

    # --- One step ---------------------------------------------------------------------------------------------------
    def get_train_dataloader(self) -> Any:
        """The loader, which remembers the rows of its batches."""
        loader = super().get_train_dataloader()
        base = getattr(loader, "base_dataloader", None)
        self._remembered = None
        if base is not None and getattr(base, "batch_sampler", None) is not None and has_length(self.train_dataset):
            self._remembered = RememberedBatches(base.batch_sampler)
            vars(base)["batch_sampler"] = self._remembered  # torch refuses to have it set
        return loader

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """The batches of one step; from here on it may have to count for nothing."""
        self._losses = []
        self._before = (self.metrics.sums(), self._tr_loss.clone())
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Forward and backward of one micro-batch, whose loss is kept."""
        loss = super().training_step(*args, **kwargs)
        self._losses.append(loss.detach().double())
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._look(model, norm)
        return norm

    def _look(self, model: Any, norm: Any) -> None:
        """Hold this step's loss and gradients to be finite; called before the optimizer's step."""
        losses = torch.stack(self._losses)
        bad_loss = ~torch.isfinite(losses)
        bad = bad_loss.any()
        # float16's scaler meets Inf in gradients while it looks for its scale, and leaves such steps out itself
        if norm is not None and self.accelerator.scaler is None:
            bad = bad | ~torch.isfinite(torch.as_tensor(norm, device=losses.device, dtype=torch.float64))
        found = torch.stack([bad.double(), torch.nan_to_num(losses).sum(), losses.new_tensor(self._listener.received)])
        if self.args.world_size > 1:
            found = self.accelerator.gather(found[None]).transpose(0, 1)
            found = torch.stack([found[0].max(), found[1].mean(), found[2].max()])
        is_bad, loss, stopping = found.tolist()
        self._stopping = int(stopping)
        if is_bad:
            self._not_finite(model, bad_loss.tolist(), norm)
        elif self._level is not None and (ran := self._level.add(loss)):
            raise DivergenceError(
                f"the loss has run away: {ran[0]:.4g} is the mean of the last ten steps, it was {ran[1]:.4g}.",
                step=self.state.global_step + 1,
                where=f"step {self.state.global_step + 1}",
                fix="Lower learning_rate, add warmup_steps or max_grad_norm, or raise divergence_factor; "
                "a checkpoint from before is what to go on from.",
            )

    def _not_finite(self, model: Any, bad_loss: list[bool], norm: Any) -> None:
        step = self.state.global_step + 1
        batches = [self._batches - len(bad_loss) + place for place in range(len(bad_loss))]
        guilty = [number for number, is_bad in zip(batches, bad_loss, strict=True) if is_bad] or batches
        is_mine = any(bad_loss) or not math.isfinite(float(norm) if norm is not None else 0.0)
        rows = self._remembered.rows(guilty) if self._remembered is not None and is_mine else []
        known = [(any(bad_loss), rows, guilty if is_mine else [])]
        if self.args.world_size > 1:
            known = gather_object(known)
        in_loss = any(one[0] for one in known)
        if in_loss:
            known = [one for one in known if one[0]]
        rows = [row for one in known for row in one[1]]
        batches = sorted({number for one in known for number in one[2]})
        what = f"{'the loss' if in_loss else 'a gradient'} is NaN or Inf"
        seen = self._spelled(rows, batches)
        self.nonfinite.add(step)
        self._record()
        if self.args.on_nonfinite == "stop":
            raise DivergenceError(
                f"{what}, on {seen}; no weight was changed by it.",
                step=step,
                rows=rows,
                where=f"step {step}",
                fix="Look at these rows, lower learning_rate or use bf16 or float32; on_nonfinite: skip leaves such "
                "steps out.",
            )
        if self.args.on_nonfinite == "skip":
            self._leave_out(model)
        if self.args.process_index == 0:
            done = "left out" if self.args.on_nonfinite == "skip" else "trained on all the same"
            warnings.warn(f"step {step}: {what}, on {seen}; {done}.", stacklevel=2)

    def _spelled(self, rows: list[int], batches: list[int]) -> str:
        if rows:
            return named_rows(self, rows)
        return f"batch {', '.join(map(str, batches))} of epoch {self._epoch}, counted from 0"

    def _leave_out(self, model: Any) -> None:
        """No gradient, so that the optimizer changes nothing; and nothing of the step in what is logged."""
        model.zero_grad()
        sums, loss = self._before
        self.metrics.put_back(sums)
        self._tr_loss.copy_(loss)
        self._globalstep_last_logged += 1  # the mean is over the steps that were taken

    def _record(self) -> None:
        if self.nonfinite.count:
            self.recorder.extra["nonfinite"] = self.nonfinite.as_dict()

    # --- A signal ---------------------------------------------------------------------------------------------------
    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *args: Any, **kw: Any
    ) -> None:
        drawn = Randomness.now() if self.control.should_evaluate else None
        logged_before = self._globalstep_last_logged
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kw)
        except _EvaluationLeft:
            assert drawn is not None
            drawn.restore()  # the evaluation is done again from its start
            self.metrics.forget_evaluation()
            self._due_evaluation, self.args.save_only_model = True, False
            self._save_checkpoint(model, trial)
            self.control.should_training_stop = True
        finally:
            if self._globalstep_last_logged > logged_before:
                tr_loss.zero_()  # transformers takes the sum from itself, which of NaN leaves NaN

    def _leave_evaluation(self) -> None:
        """End an evaluation within training where a signal has reached one of the ranks: it may take long."""
        if not self.is_in_train:
            return
        received = self._listener.received
        if self.args.world_size > 1:
            received = int(self.accelerator.gather(torch.tensor([received], device=self.args.device)).max())
        if received:
            self._stopping = received
            raise _EvaluationLeft

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: Any) -> Any:
        if not self._stopping:
            return super()._finalize_training(trial, num_train_samples, start_time)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self._finish_current_push()
        self.is_in_train = False
        step = self.state.global_step
        checkpoint = f"{self._get_output_dir(trial)}/checkpoint-{step}"
        if self.args.process_index == 0:
            how_to_go_on(self._stopping, step, checkpoint)
        raise StoppedBySignal(self._stopping, step=step, checkpoint=checkpoint)


def _level_of(args: Any, model: Any) -> LossLevel | None:
    if args.divergence_factor is None:
        return None
    size = model.config.get_text_config().vocab_size
    return LossLevel(args.divergence_factor, lowest=math.log(size))


class _EvaluationLeft(Exception):
    """A signal came during an evaluation."""


class _Stopper(TrainerCallback):
    """Saves and stops after the step in which a signal came, and leaves what else was due to the run that goes on."""

    def __init__(self, trainer: WatchedTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save instead of evaluating."""
        if self._trainer._stopping:
            self._trainer._due_evaluation = control.should_evaluate
            control.should_evaluate, control.should_save, control.should_training_stop = False, True, True
            args.save_only_model = False

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look for a signal after each batch of an evaluation."""
        self._trainer._leave_evaluation()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The epoch does not end yet."""
        if self._trainer._stopping:
            control.should_log = control.should_evaluate = control.should_save = False
