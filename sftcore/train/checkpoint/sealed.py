"""transformers' Trainer with checkpoints that are whole or not there."""

from __future__ import annotations

import contextlib
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer

from sftcore.config.recipe import AUTO
from sftcore.config.sft_config import secrets_kept_out_of_files
from sftcore.core.errors import CheckpointError
from sftcore.train.checkpoint.checksums import seal
from sftcore.train.checkpoint.folders import PREFIX, Chosen, choose, clear_leftovers, newest, place, place_model, rotate
from sftcore.train.checkpoint.untrusted import reading
from sftcore.util.disk import disk_error, free_space


class SealedTrainer(Trainer):
    """Checkpoints are written aside, sealed with checksums and then named; a run goes on from one that is whole.

    transformers writes into `.tmp-checkpoint-N/checkpoint-N`, which `_get_output_dir` offers it for the time of a save.
    """

    _aside: Path | None = None

    # --- Going on ---------------------------------------------------------------------------------------------------
    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; `resume_from_checkpoint` is a folder, "last" (or True), or "auto", which may begin from scratch.

        Raises:
            CheckpointError: the checkpoint is not there, or damaged; or one cannot be written.
        """
        self._on_each_disk(lambda: clear_leftovers(Path(self.args.output_dir)))
        folder = self._folder_to_resume(resume_from_checkpoint)
        with reading(folder):
            return super().train(folder, *args, **kwargs)

    def _folder_to_resume(self, wanted: Any) -> str | None:
        if wanted is None or wanted is False:
            return None
        answer: list[Any] = [None]
        if self.args.process_index == 0:
            try:
                answer = [choose(wanted, Path(self.args.output_dir))]
            except CheckpointError as error:
                answer = [error]
        [found] = broadcast_object_list(answer) if self.args.world_size > 1 else answer
        if isinstance(found, CheckpointError):
            raise found
        if self.args.process_index == 0:
            _announce(found, wanted, self.args.output_dir)
        return None if found.folder is None else str(found.folder)

    def _load_best_model(self) -> None:
        self._folder_to_resume(self.state.best_model_checkpoint)
        super()._load_best_model()

    # --- Writing checkpoints ----------------------------------------------------------------------------------------
    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside) if self._aside else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_dir = Path(self._get_output_dir(trial))
        final = run_dir / f"checkpoint-{self.state.global_step}"
        aside = run_dir / f"{PREFIX}{final.name}"
        with self._reported(f"the checkpoint of step {self.state.global_step}", run_dir, aside):
            self._on_each_disk(lambda: clear_leftovers(run_dir))
            best = run_dir / f"checkpoint-{self.state.best_global_step}"
            if self.state.best_global_step and best.exists():
                self.state.best_model_checkpoint = str(best)
            self._aside = aside
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._aside = None
            written = aside / final.name
            if self.state.best_model_checkpoint == str(written):
                self.state.best_model_checkpoint = str(final)
                if self.args.should_save:
                    self.state.save_to_json(str(written / "trainer_state.json"))

            def finish() -> None:
                if written.is_dir():  # on a disk that nodes share the first of them has moved it
                    seal(written)
                    place(written, final)

            self._on_each_disk(finish)
        if self.args.should_save:
            rotate(run_dir, self.args.save_total_limit, written=final, best=self.state.best_model_checkpoint)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._aside is None:  # else the folder has no name yet, and is pushed when it has one
            with secrets_kept_out_of_files(self):
                super()._push_from_checkpoint(checkpoint_folder)

    def _on_each_disk(self, act: Callable[[], None]) -> None:
        """Act once all ranks are here: the first, then one of each node; all go on when they are done."""
        self.accelerator.wait_for_everyone()
        if self.args.process_index == 0:
            act()
        self.accelerator.wait_for_everyone()
        if self.args.process_index != 0 and self.args.local_process_index == 0:
            act()
        self.accelerator.wait_for_everyone()

    # --- Writing the model ------------------------------------------------------------------------------------------
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, so that a save that is cut off does not look like one.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._aside is not None:
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(output_dir or self.args.output_dir)
        aside = folder / f"{PREFIX}model"
        with self._reported("the model", folder, aside):
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)
            self._wait_if_sharded()
            super().save_model(str(aside), _internal_call=True)
            self._wait_if_sharded()
            if self.args.should_save and aside.is_dir():
                place_model(aside, folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _wait_if_sharded(self) -> None:
        # else ranks write nothing, and scripts may save on the first alone
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def _reported(self, what: str, folder: Path, aside: Path) -> Iterator[None]:
        """Leave nothing half written, and say what a disk that fails means for the run."""
        try:
            yield
        except Exception as error:
            _clear(aside, self.args.local_process_index)
            if (said := disk_error(error)) is None:
                raise
            raise _unwritten(what, folder, Path(self.args.output_dir), said) from error
        except BaseException:
            _clear(aside, self.args.local_process_index)
            raise
        _clear(aside, self.args.local_process_index)


def _clear(aside: Path, local_rank: int) -> None:
    if local_rank == 0:
        shutil.rmtree(aside, ignore_errors=True)


def _unwritten(what: str, folder: Path, output_dir: Path, said: str) -> CheckpointError:
    last = newest(output_dir)
    if last.folder is None:
        kept = "There is no earlier checkpoint."
    else:
        kept = f"The last good checkpoint is {last.folder} (step {last.step})."
    return CheckpointError(
        f"{what} could not be written: {said}; {free_space(folder)}. {kept}",
        where=str(folder),
        fix=f"Free space or name another output_dir, then go on with resume_from_checkpoint: {AUTO}; "
        "save_total_limit keeps fewer checkpoints.",
    )


def _announce(found: Chosen, wanted: Any, output_dir: str) -> None:
    for one in found.passed_over:
        warnings.warn(f"passed over {Path(output_dir) / one}.", stacklevel=2)
    if not found.sealed:
        warnings.warn(f"{found.folder} has no checksums, so nothing can tell whether it is whole.", stacklevel=2)
    if found.folder is None:
        print(f"resume     no checkpoint in {output_dir} is whole: from scratch", file=sys.stderr)
    elif wanted != str(found.folder):
        print(f"resume     {found.folder}, step {found.step}", file=sys.stderr)
