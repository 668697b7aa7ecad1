"""transformers' Trainer with runs that go on from a checkpoint as if they had never stopped, weights and curve."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from datasets import IterableDataset
from transformers import Trainer, TrainerCallback

from sftcore.train.checkpoint.same_run import facts_of, hold_the_same
from sftcore.train.checkpoint.state import (
    Randomness,
    RunState,
    set_torch_random,
    source_of,
    storable,
    torch_random,
)
from sftcore.train.metrics import Metrics


class ResumableTrainer(Trainer):
    """What transformers' checkpoints lack is written beside them, and taken up again.

    A stream goes on at its own place where `datasets` can tell it (not behind a shuffle buffer, and not in worker
    processes); else it is read again from the start of the epoch, and what was trained on is passed over.
    """

    metrics: Metrics
    control: Any
    _from_state: RunState | None = None
    _from_folder: str | None = None
    _first_step = 0
    _loader: Any = None
    _source: Any = None
    _batches = 0
    _steps_in_epoch = 0
    _epoch = 0
    _epoch_random = ""
    _epoch_over = False
    _due_evaluation = False
    _drawn: Randomness | None = None
    _reload_random = False
    _last_norm: Any = None
    _last_rate: float | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_callback(_Bookkeeper(self))

    # --- Into the checkpoint ----------------------------------------------------------------------------------------
    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self._state_now().write(Path(output_dir), self.args.process_index)

    def _state_now(self) -> RunState:
        stream, ended = self._place_in_stream()
        return RunState(
            loss_sum=self._tr_loss.item(),
            logged_at=self._globalstep_last_logged,
            total_loss=self._total_loss_scalar,
            metrics=self.metrics.state(),
            grad_norm=_number(self._last_norm),
            learning_rate=self._last_rate,
            epoch=self._epoch,
            batches=self._batches,
            stream=stream,
            ended=ended,
            epoch_random=self._epoch_random,
            evaluate=self._due_evaluation,
            end_epoch=(ended or self._batches >= self._steps_in_epoch) and not self._epoch_over,
            watch=self._watched(),
            facts=facts_of(self),
        )

    def _watched(self) -> dict[str, Any]:
        return {}

    def _watch_on(self, state: dict[str, Any]) -> None:
        """Take up what `_watched` gave."""

    def _place_in_stream(self) -> tuple[dict[str, Any] | None, bool]:
        if self._source is None:
            return None, False
        # accelerate reads one batch ahead, and keeps the state from before it
        state = dict(vars(self._loader).get("dl_state_dict") or {})
        ended = bool(state.pop("_iterator_finished", False))
        return storable(state) if state and not ended else None, ended

    # --- Out of it --------------------------------------------------------------------------------------------------
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; see `SealedTrainer.train`.

        Raises:
            ResumeError: the run is not the one that the checkpoint was saved in.
        """
        self._from_state, self._from_folder, self._first_step = None, None, 0
        self._due_evaluation, self._drawn, self._reload_random = False, None, False
        at_start = self.args.eval_on_start
        facts_of(self)  # before anything is wrapped or moved
        try:
            return super().train(*args, **kwargs)
        finally:
            self.args.eval_on_start = at_start

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._take_up(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _take_up(self, folder: str) -> None:
        """Read this rank's state, once, and hold that the run is the same; before any weight is touched."""
        if self._from_folder == folder:
            return
        self._from_state = RunState.read(Path(folder), self.args.process_index)
        self._from_folder = folder
        if self._from_state is None:
            warnings.warn(
                f"{folder} does not say what was logged last, nor what it was trained on: sums begin anew, and nothing "
                "is compared.",
                stacklevel=2,
            )
            return
        hold_the_same(self._from_state.facts, facts_of(self), folder, anyway=self.args.resume_changed)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, resume: Any, trial: Any
    ) -> tuple[int, int]:
        if resume is not None:
            self._take_up(resume)
        found: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume, trial
        )
        state = self._from_state
        if state is None or not _is_stream(self.train_dataset):
            return found
        # transformers takes a stream for a single epoch
        if self._everywhere(state.ended):
            return state.epoch + 1, 0
        if state.stream is None or self._source is None:
            self._say("the stream is read again from the start of its epoch, and what was trained on is passed over")
            return state.epoch, state.batches
        self._source.load_state_dict(state.stream["stream"])
        self._reload_random = True
        return state.epoch, 0

    def _everywhere(self, here: bool) -> bool:
        """Whether this holds on all ranks: one may have read its part of a stream before the others have."""
        return all(gather_object([here])) if self.args.world_size > 1 else here

    def _go_on(self) -> None:
        """Once transformers has set its counters to zero: what was counted before the checkpoint."""
        state = self._from_state
        if self.state.global_step:
            self.args.eval_on_start = False
        if state is None:
            return
        self._first_step, self._initial_global_step = self._initial_global_step_of_call(), 0
        self._tr_loss += state.loss_sum
        self._total_loss_scalar = state.total_loss
        self._globalstep_last_logged = state.logged_at
        self._last_norm, self._last_rate = state.grad_norm, state.learning_rate
        self.metrics.restore(state.metrics)
        self._watch_on(state.watch)

    def _initial_global_step_of_call(self) -> int:
        return int(self.state.global_step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; speeds are those of this call, not of the steps before its checkpoint."""
        if "train_runtime" in logs and self._first_step:
            share = 1 - self._first_step / max(self.state.global_step, 1)
            for name in ("train_samples_per_second", "train_steps_per_second"):
                logs[name] = round(logs[name] * share, 3)
        super().log(logs, start_time)

    # --- The loop ---------------------------------------------------------------------------------------------------
    def get_train_dataloader(self) -> Any:
        """The loader; that of a stream knows its place."""
        self._loader = loader = super().get_train_dataloader()
        source = source_of(loader, _is_stream) if _is_stream(self.train_dataset) else None
        if source is None or not _keeps_its_place(source) or self.args.dataloader_num_workers:
            self._source = None
        elif self.train_dataset is self.eval_dataset:
            self._source = None  # an evaluation would move it
        else:
            self._source = source
            source._starting_state_dict = None
            loader.base_dataloader.state_dict = lambda: {"stream": source.state_dict()}
        return loader

    def _run_epoch(self, **kwargs: Any) -> None:
        epoch, resumed = kwargs["epoch"], self._from_state
        first = resumed is not None and epoch == kwargs["epochs_trained"]
        self._steps_in_epoch = kwargs["steps_in_epoch"]
        if first:
            self._do_what_was_due(kwargs)
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        inside = first and resumed is not None and resumed.epoch == epoch and resumed.batches > 0
        self._epoch, self._epoch_over = epoch, False
        self._batches = resumed.batches if inside and resumed is not None else 0
        if first and not inside:
            self._load_rng_state(self._from_folder)
        elif inside and resumed is not None and resumed.epoch_random:
            set_torch_random(resumed.epoch_random)
        self._epoch_random = torch_random()
        _set_epoch(kwargs["train_dataloader"], epoch)
        super()._run_epoch(**kwargs)

    def _do_what_was_due(self, kwargs: dict[str, Any]) -> None:
        """An evaluation, or the end of an epoch, that the checkpoint came before."""
        state = self._from_state
        if state is None or not (state.evaluate or state.end_epoch):
            return
        self._load_rng_state(self._from_folder)
        before, self._epoch = self._epoch, state.epoch
        self._batches, self._epoch_random = state.batches, state.epoch_random
        ends = [False] * state.evaluate + [True] * state.end_epoch
        state.evaluate = state.end_epoch = False
        for ending in ends:
            if self.control.should_training_stop:  # a signal came
                break
            if ending:
                self._epoch_over = True
                self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            else:
                self.control.should_evaluate = True
            self._maybe_log_save_evaluate(
                self._tr_loss,
                self._last_norm,
                kwargs["model"],
                kwargs["trial"],
                state.epoch,
                kwargs["ignore_keys_for_eval"],
                kwargs["start_time"],
                learning_rate=self._last_rate,
            )
        self._epoch = before
        self._drawn = Randomness.now()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._drawn is not None:
            self._drawn.restore()
        else:
            super()._load_rng_state(checkpoint)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """The batches of one step, counted."""
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._batches += len(found[0])
        if self._reload_random:
            # reading the first batch has drawn numbers, which the run that did not stop drew long before
            self._load_rng_state(self._from_folder)
            self._reload_random = False
            self._source._starting_state_dict = None
        return found

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._last_norm = norm  # on its device: reading it would have the host wait
        return norm

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: Any) -> Any:
        if self._from_state is not None:  # where no epoch was left to run
            model = self.model_wrapped
            self._do_what_was_due(
                {"model": model, "trial": trial, "ignore_keys_for_eval": None, "start_time": start_time}
            )
        return super()._finalize_training(trial, num_train_samples, start_time)

    def _say(self, text: str) -> None:
        if self.args.process_index == 0:
            print(f"resume     {text}", file=sys.stderr)


class _Bookkeeper(TrainerCallback):
    """Keeps a ResumableTrainer's account of where the run stands."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up what the checkpoint holds."""
        self._trainer._go_on()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the learning rate of the step, before the schedule moves on."""
        self._trainer._last_rate = self._trainer._get_learning_rate()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the part of the epoch by all its batches, also those before the checkpoint."""
        trainer = self._trainer
        if trainer._source is not None:
            state.epoch = trainer._epoch + trainer._batches / trainer._steps_in_epoch

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """From here on the epoch's end is no longer due."""
        self._trainer._epoch_over = True


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _is_stream(dataset: Any) -> bool:
    return isinstance(dataset, IterableDataset)


def _keeps_its_place(source: IterableDataset) -> bool:
    """Whether the state of a stream is all of it: `datasets` does not keep the rows of a shuffle buffer."""
    stages = [source._ex_iterable]
    while stages:
        stage = stages.pop()
        if "BufferShuffled" in type(stage).__name__:
            return False
        stages += [*getattr(stage, "ex_iterables", ()), *([stage.ex_iterable] if hasattr(stage, "ex_iterable") else ())]
    return source._formatting is None


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tell every sampler below a loader; accelerate does not reach through all of its own wrappers."""
    sampler = getattr(loader, "batch_sampler", None)
    while sampler is not None:
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
