"""Checkpoints and models that are whole or not there: written aside, given checksums, and named in one move."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list

from sftcore.config.recipe import AUTO
from sftcore.core.errors import CheckpointError, SFTCoreError
from sftcore.train.checkpoint.checksums import seal
from sftcore.train.checkpoint.folders import (
    PREFIX,
    STATE,
    Chosen,
    choose,
    clear_leftovers,
    newest,
    place,
    place_model,
    rotate,
)
from sftcore.train.checkpoint.owner import owned
from sftcore.util.disk import DiskFailure
from sftcore.util.warned import warn

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainerState, TrainingArguments


class AtomicCheckpoints:
    """Where a run's checkpoints are written, and which of them it resumes from.

    For the time of a save `aside` is a hidden folder, which the trainer offers to transformers as its output folder.
    """

    def __init__(self, args: TrainingArguments, accelerator: Accelerator) -> None:
        self.aside: Path | None = None
        self._args = args
        self._accelerator = accelerator

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """A context in which no other run writes to the output folder; the first process answers for all.

        Raises:
            ConflictError: another run does.
        """
        with contextlib.ExitStack() as stack:
            answer: list[Any] = [None]
            if self._args.process_index == 0:
                try:
                    stack.enter_context(owned(Path(self._args.output_dir)))
                except SFTCoreError as error:
                    answer = [error]
            [refusal] = broadcast_object_list(answer) if self._accelerator.num_processes > 1 else answer
            if refusal is not None:
                raise refusal
            yield

    # --- Resuming ---------------------------------------------------------------------------------------------------
    def clear_leftovers(self) -> None:
        """Remove what an earlier process was writing when it ended."""
        self._on_each_disk(lambda: clear_leftovers(Path(self._args.output_dir)))

    def choose(self, wanted: Any) -> str | None:
        """The folder to resume from, the same on all processes: None to begin.

        Args:
            wanted: a folder, "last" (or True), or "auto", which may begin from scratch; None or False to begin.

        Raises:
            CheckpointError: the checkpoint is not there, or damaged.
        """
        if wanted is None or wanted is False:
            return None
        answer: list[Any] = [None]
        if self._accelerator.is_main_process:
            try:
                anyway = bool(getattr(self._args, "resume_changed", False))
                answer = [choose(wanted, Path(self._args.output_dir), anyway=anyway)]
            except CheckpointError as error:
                answer = [error]
        [found] = broadcast_object_list(answer) if self._accelerator.num_processes > 1 else answer
        if isinstance(found, CheckpointError):
            raise found
        if self._accelerator.is_main_process:
            _announce(found, wanted, self._args.output_dir)
        return None if found.folder is None else str(found.folder)

    # --- Writing ----------------------------------------------------------------------------------------------------
    def save(self, write: Callable[[], None], run_dir: Path, state: TrainerState) -> Path:
        """Write the checkpoint of the step in `state` into `run_dir`; its final folder.

        Args:
            write: writes into `aside`, on every process.
            run_dir: the run's folder, or that of a trial.
            state: transformers' state; the best checkpoint in it gets its final name.

        Raises:
            CheckpointError: it cannot be written, or its disk is full.
        """
        final = run_dir / f"checkpoint-{state.global_step}"
        aside = run_dir / f"{PREFIX}{final.name}"
        written = aside / final.name
        with self._explained(f"the checkpoint of step {state.global_step}", run_dir, aside):
            self._on_each_disk(lambda: clear_leftovers(run_dir))
            state.best_model_checkpoint = best = self._best(run_dir, final, state)
            self.aside = aside
            try:
                write()
            finally:
                self.aside = None
            if state.best_model_checkpoint != best or best == str(final):
                # transformers looks for the folder before each process has written its part of the weights
                state.best_model_checkpoint = best
                if self._args.should_save:
                    state.save_to_json(str(written / STATE))

            def finish() -> None:
                if written.is_dir():  # on a disk that nodes share the first of them has moved it
                    seal(written)
                    place(written, final)

            self._on_each_disk(finish)
        if self._args.should_save:
            rotate(run_dir, self._args.save_total_limit, written=final, best=state.best_model_checkpoint)
        return final

    def _best(self, run_dir: Path, final: Path, state: TrainerState) -> str | None:
        """The best checkpoint once `final` is there, the same on all processes: the first one looks for it."""
        best = run_dir / f"checkpoint-{state.best_global_step}"
        found = state.best_model_checkpoint
        if state.best_global_step and (best == final or best.exists()):
            found = str(best)
        [agreed] = broadcast_object_list([found]) if self._accelerator.num_processes > 1 else [found]
        return None if agreed is None else str(agreed)

    def save_model(self, write: Callable[[str], None], folder: Path, *, wait: Callable[[], None]) -> None:
        """Write the model into `folder`, so that a save that is cut off does not look like one.

        Args:
            write: writes it into the folder that it is given, on every process.
            folder: where it stands at the end.
            wait: called before and after, for processes that write together.

        Raises:
            CheckpointError: it cannot be written.
        """
        aside = folder / f"{PREFIX}model"
        # scripts may save on the first process alone, so that it cannot tell the others
        own = self._args.process_index == 0 and folder.resolve() == Path(self._args.output_dir).resolve()
        with owned(folder) if own else contextlib.nullcontext(), self._explained("the model", folder, aside):
            if self._args.should_save:
                shutil.rmtree(aside, ignore_errors=True)
            wait()
            write(str(aside))
            wait()
            if self._args.should_save and aside.is_dir():
                place_model(aside, folder)

    def _on_each_disk(self, act: Callable[[], None]) -> None:
        """Act once all processes are here: the first, then one of each node; all continue when they are done."""
        self._accelerator.wait_for_everyone()
        if self._args.process_index == 0:
            act()
        self._accelerator.wait_for_everyone()
        if self._args.process_index != 0 and self._args.local_process_index == 0:
            act()
        self._accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def _explained(self, what: str, folder: Path, aside: Path) -> Iterator[None]:
        """Leave nothing half written, and say what a disk that fails means for the run."""
        try:
            yield
        except BaseException as error:
            self._clear(aside)
            failure = DiskFailure.of(error)
            if failure is None:
                raise
            raise _unwritten(what, folder, Path(self._args.output_dir), failure) from error
        self._clear(aside)

    def _clear(self, aside: Path) -> None:
        if self._args.local_process_index == 0:
            shutil.rmtree(aside, ignore_errors=True)


def _unwritten(what: str, folder: Path, output_dir: Path, failure: DiskFailure) -> CheckpointError:
    last = newest(output_dir)
    if last.folder is None:
        kept = "There is no earlier checkpoint."
    else:
        kept = f"The last good checkpoint is {last.folder} (step {last.step})."
    return CheckpointError(
        f"{what} could not be written: {failure.told(folder)}. {kept}",
        where=str(folder),
        fix=failure.remedy(f"or name another output_dir, and then resume with resume_from_checkpoint: {AUTO}")
        + (" save_total_limit keeps fewer checkpoints." if failure.is_full else ""),
    )


def _announce(found: Chosen, wanted: Any, output_dir: str) -> None:
    for one in found.passed_over:
        warn(f"{Path(output_dir) / one} was passed over.")
    if not found.sealed:
        warn(f"{found.folder} has no checksums, so nothing can tell whether it is whole.")
    for one in found.rewritten:
        warn(f"{found.folder}: {one}. The checkpoint is used: something wrote that after it was saved.")
    if found.folder is None:
        offer = f". {found.offer}" if found.offer else ""
        print(f"resume     {output_dir} holds no whole checkpoint: the run starts from scratch{offer}", file=sys.stderr)
    elif wanted != str(found.folder):
        print(f"resume     {found.folder}, step {found.step}", file=sys.stderr)
