"""Evaluates and saves so many times in every epoch."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class PerEpoch(TrainerCallback):  # type: ignore[misc]
    """Evaluates and saves at even distances in each epoch, the last time at its end; None leaves it as it is.

    It comes behind what transformers decides by a number of steps, and before what stops a run.
    """

    def __init__(self, evaluations: int | None, saves: int | None) -> None:
        self.evaluations, self.saves = evaluations, saves
        self._steps = 1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Learn how many steps an epoch has."""
        batches = len(kwargs["train_dataloader"])
        self._steps = max(-(-batches // args.gradient_accumulation_steps), 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide of this step; the last step of a run is saved, and evaluated, as transformers does."""
        last = state.global_step >= state.max_steps
        if self.evaluations is not None:
            due = args.eval_delay <= state.global_step and self._is_due(state.global_step, self.evaluations)
            control.should_evaluate = due or (last and control.should_evaluate)
        if self.saves is not None:
            control.should_save = self._is_due(state.global_step, self.saves) or last

    def _is_due(self, step: int, count: int) -> bool:
        """Whether a further of `count` parts of the epoch ends with this step, counted from 1."""
        inside = (step - 1) % self._steps + 1
        return inside * count // self._steps > (inside - 1) * count // self._steps
