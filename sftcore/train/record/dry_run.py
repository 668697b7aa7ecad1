"""A run that ends where its first step would begin, and says what it would have done."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from sftcore.core.errors import SFTCoreError
from sftcore.core.visible import visible
from sftcore.train.record.summary import plan_lines
from sftcore.util.shown import counted

if TYPE_CHECKING:
    from sftcore.train.view import RunView

WRITES_NOTHING = {"report_to": "none", "callbacks": None, "push_to_hub": False}
"""Settings of a run that is not to leave anything: no tracker, no repository, no callback of somebody's own."""


class PlanShownError(SFTCoreError):
    """Raised instead of the first step."""


class StopBeforeTraining(TrainerCallback):
    """Shows the plan of a run, and its steps in epochs and tokens; then raises PlanShownError."""

    def __init__(self, trainer: RunView, output_dir: str) -> None:
        self._trainer = trainer
        self._output_dir = output_dir

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        """Show the plan in place of training."""
        if state.is_world_process_zero:
            args.output_dir = self._output_dir
            for line in (*plan_lines(self._trainer), f"dry run    {self._extent(state, train_dataloader)}"):
                print(visible(line), file=sys.stderr)
        raise PlanShownError("a dry run ends before its first step.")

    def _extent(self, state: Any, loader: Any) -> str:
        ledger = self._trainer.data.ledger_of("train_dataset")
        nothing = "nothing was trained or written"
        try:
            steps = len(loader) / self._trainer.args.gradient_accumulation_steps
        except TypeError:  # a stream has no length
            return nothing
        epochs = state.max_steps / steps
        tokens = f", about {ledger.tokens_kept * epochs:,.0f} tokens" if ledger else ""
        are = "is" if state.max_steps == 1 else "are"
        return f"{counted(state.max_steps, 'step')} {are} {epochs:,.2f} epochs{tokens}; {nothing}"
