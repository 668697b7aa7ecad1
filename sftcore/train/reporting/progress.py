"""What a run shows of its progress: the moments of training, told to a view."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from sftcore.display.choice import view_for
from sftcore.display.environment import bars_wanted
from sftcore.display.figures import Figures, evaluation_in, others_in
from sftcore.report.run import PAGE
from sftcore.train.reporting.clock import TrainingClock
from sftcore.train.reporting.memory import most_memory

if TYPE_CHECKING:
    from sftcore.display.view import View


class Counted(Protocol):
    """The tokens that a run has counted so far, also before its checkpoint."""

    num_tokens: int
    num_supervised_tokens: int


class RichProgress(TrainerCallback):
    """Tells a view of loss, accuracy, tokens and supervised tokens per second of training alone, and the time left.

    `metrics` are the trainer's, which of a resumed run know the tokens that were counted before. `view` is what shows
    it, if that is not what fits the console. `clock` has the time of the steps.
    """

    def __init__(self, console: Console, metrics: Counted | None = None, *, view: View | None = None) -> None:
        self.view, self._given, self._console = view, view, console
        self.clock, self._first_step = TrainingClock(), 0
        self._metrics = metrics
        self._batches = 0
        self._page: Path | None = None
        self._training = False

    def _shows(self, state: Any) -> View | None:
        return self.view if state.is_world_process_zero else None

    def _renew(self) -> None:
        """Take what fits the console as it is now, which may have been redirected since."""
        if self._given is None and not self._training:
            self.view = view_for(self._console, draws=bars_wanted())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to count, and show where the run begins."""
        self._renew()
        self._training = True
        self._first_step, known, self._batches = state.global_step, self._metrics, 0
        self._page = Path(args.output_dir) / PAGE if getattr(args, "report_html", False) else None
        self.clock.begin(*((known.num_tokens, known.num_supervised_tokens) if known else ()))
        if (view := self._shows(state)) is not None:
            view.open(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        self.clock.step()
        if (view := self._shows(state)) is not None:
            view.step(state.global_step, self.clock.seconds(), self._left(state))

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        """Show how far an evaluation is, where its length is known."""
        if self._batches == 0:
            self._renew()
        view = self._shows(state)
        if view is not None and has_length(eval_dataloader):
            self._batches += 1
            view.evaluating(self._batches, len(eval_dataloader))

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the time of an evaluation out."""
        self.clock.pause()
        self._batches = 0
        if (view := self._shows(state)) is not None:
            view.evaluation_over()

    def on_predict(self, args: Any, state: Any, control: Any, *_: Any, **__: Any) -> None:
        """The predictions are there."""
        self.on_evaluate(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the time of a save out."""
        self.clock.pause()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Show the newest figures."""
        if self.view is None:
            self._renew()
        view = self._shows(state)
        if not logs or view is None:
            return
        view.entry(state.log_history[-1] if state.log_history else {**logs, "step": state.global_step})
        if "loss" in logs:
            view.logged(self._figures(args, state, logs))
        elif line := evaluation_in(state.global_step, logs):
            view.evaluated(line)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave what is shown."""
        self.close()

    def close(self) -> None:
        """Training, or an evaluation alone, is over, or was broken off."""
        self._batches, self._training = 0, False
        if self.view is not None:
            self.view.close(self._page)

    def _left(self, state: Any) -> float:
        done, left = max(state.global_step - self._first_step, 1), max(state.max_steps - state.global_step, 0)
        return float(self.clock.seconds() / done * left)

    def _figures(self, args: Any, state: Any, logs: dict[str, Any]) -> Figures:
        known: dict[str, Any] = {}
        if "num_supervised_tokens" in logs:  # SFTTrainer logs them, other trainers do not
            tokens, supervised = self.clock.speed(logs["num_tokens"], logs["num_supervised_tokens"])
            known = {"accuracy": logs["mean_token_accuracy"], "tokens": tokens, "supervised": supervised}
        if (device := getattr(args, "device", None)) is not None:
            known["memory"] = most_memory(device)
        rate, others = logs.get("learning_rate"), others_in(logs)
        where = state.global_step, state.max_steps, float(logs["loss"]), self._left(state)
        return Figures(*where, learning_rate=rate, others=others, **known)


class RichProgressCallback(RichProgress):
    """The same under TRL's name, on standard error: for the `callbacks` of any `transformers.Trainer`."""

    def __init__(self) -> None:
        super().__init__(Console(stderr=True))
