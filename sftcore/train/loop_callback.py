"""What a run does at the moments for which transformers has callbacks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from sftcore.core.visible import visible
from sftcore.train.checkpoint.other_run import OutputFolder, remove_run
from sftcore.train.guard.signals import EvaluationLeft
from sftcore.util.disk import writing
from sftcore.util.warned import warn

if TYPE_CHECKING:
    from sftcore.train.seams import TrainerSeams


class LoopCallback(TrainerCallback):
    """What a run does at transformers' own moments. It comes behind the user's callbacks."""

    def __init__(self, trainer: TrainerSeams) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Continue what the checkpoint holds."""
        self.trainer.continue_sums()
        self.trainer.agreement.agree(control)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the learning rate of the step, before the schedule moves on."""
        self.trainer.resumption.learning_rate = self.trainer.learning_rate_now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the part of the epoch by all its batches; after a signal save instead of evaluating, and stop."""
        trainer = self.trainer
        if (epoch := trainer.resumption.epoch_of_stream()) is not None:
            state.epoch = epoch
        watchdog = trainer.guard.watchdog
        if watchdog is not None and watchdog.tripped:
            control.should_training_stop, control.should_save = True, trainer.saves_on_signal
            if state.is_world_process_zero:
                kept = "a checkpoint is saved" if trainer.saves_on_signal else 'no checkpoint: save_strategy is "no"'
                warn(f"step {state.global_step}: {watchdog.sentence()} (loss_watchdog_threshold); {kept}.")
        if trainer.guard.stopped_by:
            trainer.resumption.due_evaluation = control.should_evaluate
            control.should_evaluate, control.should_training_stop = False, True
            control.should_save = trainer.saves_on_signal
            args.save_only_model = False
        trainer.agreement.agree(control)

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Agree on what a callback has decided: after a micro-batch the loop may stop."""
        self.trainer.agreement.agree(control)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Agree on what a callback has decided, before an evaluation or a save."""
        self.trainer.agreement.after_log(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Agree on what a callback has decided, before a save."""
        if self.trainer.is_in_train:
            self.trainer.agreement.agree(control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Agree on what a callback has decided."""
        self.trainer.agreement.agree(control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End an evaluation within training where a signal has reached one of the processes: it may take long."""
        if self.trainer.is_in_train and self.trainer.guard.signal_received():
            raise EvaluationLeft

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The epoch's end is no longer due; after a signal the epoch does not end yet.

        Raises:
            DataError: it had no batch, as a stream may that keeps no row: nothing would be trained, and then saved.
        """
        self.trainer.resumption.epoch_is_over = True
        if state.global_step == 0 and not self.trainer.guard.stopped_by:
            raise self.trainer.rows.none_kept()
        if self.trainer.guard.stopped_by:
            control.should_log = control.should_evaluate = control.should_save = False
        self.trainer.agreement.agree(control)


class ReplaceOtherRun(TrainerCallback):
    """Removes the run that a new one replaces, once the new one has taken a step: until then it might still fail."""

    def __init__(self, folder: OutputFolder) -> None:
        self._folder = folder
        self._due = True

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remove it on the first process, and say so.

        Raises:
            WriteError: it cannot be removed.
        """
        if not self._due or not state.is_world_process_zero:
            return
        self._due = False
        path = self._folder.path
        if gone := self._folder.replaced():
            with writing("the new run", path):
                remove_run(path)
            print(visible(f"output     {path}: removed {', '.join(one.name for one in gone)}"), file=sys.stderr)
