"""Progress in the terminal: a bar where there is a terminal, a line for each log elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from sftcore.train.reporting.clock import TrainingClock

if TYPE_CHECKING:
    from sftcore.train.parts.metrics import Metrics


class RichProgress(TrainerCallback):
    """Loss, accuracy, tokens and supervised tokens per second of training alone, and the time left.

    `metrics` are the trainer's, which of a resumed run know the tokens that were counted before.
    """

    def __init__(self, console: Console, metrics: Metrics | None = None) -> None:
        self._console = console
        self._metrics = metrics
        self._progress: Progress | None = None
        self._task: Any = None
        self._clock, self._first_step = TrainingClock(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the bar."""
        self._first_step, known = state.global_step, self._metrics
        self._clock.begin(*((known.num_tokens, known.num_supervised_tokens) if known else ()))
        if self._console.is_terminal and state.is_world_process_zero:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                "train", total=state.max_steps, completed=state.global_step, figures=""
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        self._clock.step()
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the time of an evaluation out."""
        self._clock.pause()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the time of a save out."""
        self._clock.pause()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Show the newest figures."""
        if not logs or not state.is_world_process_zero:
            return
        for name in filter(_of_evaluation, logs):
            accuracy = logs.get(f"{name.removesuffix('loss')}mean_token_accuracy")
            self._say(
                f"step {state.global_step}: {name} {logs[name]:.4f}"
                + (f", accuracy {accuracy:.3f}" if accuracy is not None else "")
            )
        if "loss" not in logs:
            return
        figures = f"loss {float(logs['loss']):.4f}"
        if "num_supervised_tokens" in logs:  # SFTTrainer logs them, other trainers do not
            figures += f"  accuracy {logs['mean_token_accuracy']:.3f}  {self._speed(logs)}"
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step, figures=figures)
        else:
            done = max(state.global_step - self._first_step, 1)
            left = self._clock.seconds() / done * (state.max_steps - state.global_step)
            self._say(f"step {state.global_step}/{state.max_steps}  {figures}  left {_minutes(left)}")

    def _say(self, line: str) -> None:
        """One line, however narrow the console is taken to be: a file or a pipe has no width."""
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _speed(self, logs: dict[str, Any]) -> str:
        tokens, supervised = self._clock.speed(logs["num_tokens"], logs["num_supervised_tokens"])
        return f"{tokens:,.0f} tokens/s ({supervised:,.0f} supervised)"


class RichProgressCallback(RichProgress):
    """The same under TRL's name, on standard error: for the `callbacks` of any `transformers.Trainer`."""

    def __init__(self) -> None:
        super().__init__(Console(stderr=True))


def _of_evaluation(name: str) -> bool:
    """Whether a figure is the loss of an evaluation, maybe of one of several sets: `eval_loss`, `eval_dev_loss`."""
    return name.startswith("eval_") and name.endswith("loss") and not name.endswith("aux_loss")


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
