"""Runs that continue from a checkpoint as if they had never stopped: the same weights, the same curve."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from datasets import IterableDataset

from sftcore.train.checkpoint.same_run import require_same
from sftcore.train.checkpoint.state import (
    RunState,
    source_of,
    storable,
)
from sftcore.train.parts.part import Part
from sftcore.train.parts.randomness import Randomness, set_torch_random, torch_random
from sftcore.util.warned import warn

if TYPE_CHECKING:
    from accelerate import Accelerator


class Resumption(Part):
    """What transformers' checkpoints lack: where in the data a run stands, and what was due and not yet done.

    A stream continues at its own place where `datasets` can tell it (not behind a shuffle buffer, and not in worker
    processes); else it is read again from the start of the epoch, and what was trained on is passed over.

    Attributes:
        saved: what the checkpoint says of this process; None for a run that begins.
        folder: the checkpoint.
        epoch, batches_drawn: where the run stands: the epoch, and how many of its micro-batches were drawn.
        steps_in_epoch: the micro-batches of an epoch.
        first_step: the step of the checkpoint.
        grad_norm, learning_rate: those of the last step.
        due_evaluation: whether an evaluation is due that a signal has put off.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.begin()

    def begin(self) -> None:
        """Forget the last call of `train`."""
        self.saved: RunState | None = None
        self.folder: str | None = None
        self.first_step = 0
        self.epoch = self.batches_drawn = self.steps_in_epoch = 0
        self.epoch_is_over = self.due_evaluation = False
        self.grad_norm: Any = None
        self.learning_rate: float | None = None
        self._epoch_random = ""
        self._loader: Any = None
        self._source: Any = None
        self._random: Randomness | None = None
        self._random_is_due = False

    # --- Into the checkpoint ----------------------------------------------------------------------------------------
    def state_now(self) -> RunState:
        """This process's part of the run as it stands between two steps, without sums and metrics."""
        stream, ended = self._place_in_stream()
        return RunState(
            grad_norm=None if self.grad_norm is None else float(self.grad_norm),
            learning_rate=self.learning_rate,
            epoch=self.epoch,
            batches=self.batches_drawn,
            stream=stream,
            ended=ended,
            epoch_random=self._epoch_random,
            evaluate=self.due_evaluation,
            end_epoch=(ended or self.batches_drawn >= self.steps_in_epoch) and not self.epoch_is_over,
        )

    def _place_in_stream(self) -> tuple[dict[str, Any] | None, bool]:
        if self._source is None:
            return None, False
        # accelerate reads one batch ahead, and keeps the state from before it
        state = dict(vars(self._loader).get("dl_state_dict") or {})
        ended = bool(state.pop("_iterator_finished", False))
        return storable(state) if state and not ended else None, ended

    # --- Out of it --------------------------------------------------------------------------------------------------
    def read(self, folder: str, facts: Callable[[], Mapping[str, Any]], *, anyway: bool) -> None:
        """Read this process's state, once, and require that the run is the same; before any weight is touched.

        Raises:
            ResumeError: the run is not the one that the checkpoint was saved in, and not `anyway`.
        """
        if self.folder == folder:
            return
        self.saved = RunState.read(Path(folder), self._accelerator.process_index)
        self.folder = folder
        if left_out := _left_out(Path(folder)):
            warn(
                f"{folder} holds no {' and no '.join(left_out)} (save_only_model leaves them out), so "
                f"{'both start' if len(left_out) > 1 else 'it starts'} anew"
                f"{', at the first learning rate' if 'learning rate schedule' in left_out else ''}."
            )
        if self.saved is None:
            warn(
                f"{folder} does not say what was logged last, nor what it was trained on: sums start at zero, and "
                "the run is not compared with it."
            )
            return
        require_same(self.saved.facts, facts(), folder, anyway=anyway)

    def first_batch(self, found: tuple[int, int], *, streams: bool) -> tuple[int, int]:
        """The epoch to begin in, and how many of its batches to pass over; `found` is what transformers says."""
        if self.saved is None or not streams:
            return found
        # transformers takes a stream for a single epoch
        if self._everywhere(self.saved.ended):
            return self.saved.epoch + 1, 0
        if self.saved.stream is None or self._source is None:
            self._say("the stream is read again from the start of its epoch, and what was trained on is passed over")
            return self.saved.epoch, self.saved.batches
        self._source.load_state_dict(self.saved.stream["stream"])
        self._random_is_due = True
        return self.saved.epoch, 0

    def _everywhere(self, here: bool) -> bool:
        """Whether this holds on all processes: one may have read its part of a stream before the others have."""
        return all(gather_object([here])) if self._accelerator.num_processes > 1 else here

    # --- The loop ---------------------------------------------------------------------------------------------------
    def watch(self, loader: Any, *, only_here: bool) -> None:
        """Follow the place of a loader's stream; not `only_here` where workers or an evaluation read the stream too."""
        self._loader, self._source = loader, None
        source = source_of(loader, is_stream)
        if source is not None and only_here and _keeps_its_place(source):
            self._source = source
            source._starting_state_dict = None
            loader.base_dataloader.state_dict = lambda: {"stream": source.state_dict()}

    def enter_epoch(self, epoch: int, loader: Any, *, first: bool, load_random: Callable[[str | None], None]) -> None:
        """Set place and random state for an epoch.

        Args:
            epoch: its number, from 0.
            loader: of the training rows.
            first: whether it is the first one of this call of `train`.
            load_random: takes up the random state of a checkpoint's folder.
        """
        saved = self.saved if first else None
        inside = saved is not None and saved.epoch == epoch and saved.batches > 0
        self.epoch, self.epoch_is_over = epoch, False
        self.batches_drawn = saved.batches if saved is not None and inside else 0
        if saved is not None and not inside:
            load_random(self.folder)
        elif saved is not None and saved.epoch_random:
            set_torch_random(saved.epoch_random)
        self._epoch_random = torch_random()
        _set_epoch(loader, epoch)

    def due(self) -> Iterator[str]:
        """What was due when the checkpoint was saved ("evaluation", "epoch end"); meanwhile its place is taken.

        Call `next` until the end, also where one of them is not wanted any more.
        """
        saved = self.saved
        if saved is None or not (saved.evaluate or saved.end_epoch):
            return
        before, self.epoch = self.epoch, saved.epoch
        self.batches_drawn, self._epoch_random = saved.batches, saved.epoch_random
        what = ["evaluation"] * saved.evaluate + ["epoch end"] * saved.end_epoch
        saved.evaluate = saved.end_epoch = False
        yield from what
        self.epoch = before
        self._random = Randomness.now()

    def restored_random(self) -> bool:
        """Take up the random state from after what was due; False where nothing was, and the checkpoint's counts."""
        if self._random is None:
            return False
        self._random.restore()
        return True

    def batches(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Count the batches of a step."""
        self.batches_drawn += len(batches)

    def random_is_due(self) -> bool:
        """Whether the checkpoint's random state is to be loaded now: once, behind the first batch of a stream.

        Reading that batch has drawn numbers, which the run that did not stop drew long before.
        """
        due, self._random_is_due = self._random_is_due, False
        if due:
            self._source._starting_state_dict = None
        return due

    def before_optimizer(self, norm: Any) -> None:
        """Keep the norm, on its device: reading it would have the host wait."""
        self.grad_norm = norm

    def epoch_of_stream(self) -> float | None:
        """The epoch with its fraction, by all batches of a stream, also those before the checkpoint; else None."""
        return None if self._source is None else self.epoch + self.batches_drawn / self.steps_in_epoch

    def share_of_this_call(self, step: int) -> float:
        """Which part of the steps up to this one were taken in this call of `train`."""
        return 1 - self.first_step / max(step, 1)

    def _say(self, text: str) -> None:
        if self._accelerator.is_main_process:
            print(f"resume     {text}", file=sys.stderr)


def _left_out(folder: Path) -> list[str]:
    """What a checkpoint does not hold of optimizer and schedule, by transformers' and accelerate's names."""
    if any(folder.glob("global_step*")):  # DeepSpeed keeps both in files of its own
        return []
    has_optimizer = any(any(folder.glob(name)) for name in ("optimizer*.pt", "optimizer*.bin", "optimizer_*"))
    missing = {"optimizer state": not has_optimizer, "learning rate schedule": not (folder / "scheduler.pt").is_file()}
    return [name for name, gone in missing.items() if gone]


def is_stream(dataset: Any) -> bool:
    """Whether it is an IterableDataset of `datasets`."""
    return isinstance(dataset, IterableDataset)


def _keeps_its_place(source: IterableDataset) -> bool:
    """Whether the state of a stream is complete: `datasets` does not keep the rows of a shuffle buffer."""
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
