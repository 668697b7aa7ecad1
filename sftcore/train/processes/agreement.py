"""What a callback decides on one process, decided on all: whether to log, evaluate, save or stop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainerControl

_FLAGS = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")
_ALIKE = ("transformers", "sftcore")
"""Packages whose callbacks decide alike on all processes, by what all of them know."""


class Agreement:
    """Brings the flags of transformers' control together: what one process wants is done by all.

    A process that saved, evaluated or stopped by itself would wait for the others for ever. Runs without callbacks of a
    user's own do not pay for the look.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._is_needed = self._log_is_due = False

    def begin(self, callbacks: Iterable[Any]) -> None:
        """Look at the callbacks of a run that begins; the same ones are on all processes, or none is a user's."""
        own = any(type(one).__module__.partition(".")[0] not in _ALIKE for one in callbacks)
        self._is_needed = self._any(own) if self._accelerator.num_processes > 1 else False

    def step_is_logged(self) -> None:
        """The next log is the loop's own, which all processes write; a user's may be that of one of them."""
        self._log_is_due = True

    def after_log(self, control: TrainerControl) -> None:
        """Agree after the loop's own log."""
        due, self._log_is_due = self._log_is_due, False
        if due:
            self.agree(control)

    def agree(self, control: TrainerControl) -> None:
        """Set each flag that one of the processes has set; all of them come here together."""
        if not self._is_needed:
            return
        flags = torch.tensor([[int(getattr(control, name)) for name in _FLAGS]], device=self._accelerator.device)
        for name, found in zip(_FLAGS, self._accelerator.gather(flags).amax(0).tolist(), strict=True):
            setattr(control, name, bool(found))

    def _any(self, here: bool) -> bool:
        return bool(self._accelerator.gather(torch.tensor([int(here)], device=self._accelerator.device)).any())
