"""The part of the seams that writes and reads: checkpoints, and saved models (see `seams`)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer

from sftcore.core.errors import ConflictError
from sftcore.model.precision import cast_adapter
from sftcore.model.unwrap import is_peft_model
from sftcore.train.account.row_losses import RowLosses
from sftcore.train.checkpoint.atomic import AtomicCheckpoints
from sftcore.train.checkpoint.resume import Resumption
from sftcore.train.checkpoint.same_run import RunFacts
from sftcore.train.guard.steps import StepGuard
from sftcore.train.parts.metrics import Metrics
from sftcore.train.parts.part import Part
from sftcore.train.processes.distributed import is_taken_apart
from sftcore.util.foreign import in_our_words


class SavingSeams(Trainer):
    """Where a run's parts meet what transformers saves and loads."""

    checkpoints: AtomicCheckpoints
    resumption: Resumption
    guard: StepGuard
    metrics: Metrics
    row_losses: RowLosses
    facts: RunFacts
    parts: Sequence[Part] = ()
    model_wrapped: Any

    # --- Checkpoints ------------------------------------------------------------------------------------------------
    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints.aside) if self.checkpoints.aside else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        def write() -> None:
            super(SavingSeams, self)._save_checkpoint(model, trial)

        self.row_losses.collect()
        final = self.checkpoints.save(write, Path(self._get_output_dir(trial)), self.state)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Make the repository on the hub, or find it.

        Raises:
            ConflictError: the hub cannot be reached, or does not let this user write there.
        """
        try:
            with in_our_words("the repository on the hub cannot be made", ConflictError, where="push_to_hub"):
                super().init_hf_repo(*args, **kwargs)
        except ConflictError as error:
            error.fix = "Log in (hf auth login) and go online, or set push_to_hub: false and push the folder later."
            raise

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.checkpoints.aside is None:  # else the folder has no name yet, and is pushed when it has one
            with _secrets_kept_out_of_files(self):
                super()._push_from_checkpoint(checkpoint_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        state = self.resumption.state_now()
        state.loss_sum, state.total_loss = self._tr_loss.item(), self._total_loss_scalar
        state.logged_at = self._globalstep_last_logged
        state.metrics, state.watch, state.facts = self.metrics.state(), self.guard.state(), self.facts()
        state.rows = self.row_losses.state()
        state.write(Path(output_dir), self.args.process_index)
        self.row_losses.write(Path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if not self.resumption.restored_random():
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._read_state(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if is_peft_model(self.model):
            # PEFT raises an adapter that it loads to float32, whatever it was trained in
            cast_adapter(self.model, self.args.adapter_dtype)

    def _read_state(self, folder: str) -> None:
        self.resumption.read(folder, self.facts, anyway=self.args.resume_changed)

    def _load_best_model(self) -> None:
        self.checkpoints.choose(self.state.best_model_checkpoint)
        super()._load_best_model()

    # --- Saving -----------------------------------------------------------------------------------------------------
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model, so that a save that is cut off does not look like one.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self.checkpoints.aside is not None:
            super().save_model(output_dir, _internal_call)  # into a checkpoint, which may be in parts
            return

        def wait() -> None:
            # else other processes write nothing, and scripts may save on the first alone
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                self.accelerator.wait_for_everyone()

        self.checkpoints.save_model(self._write_whole_model, Path(output_dir or self.args.output_dir), wait=wait)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _write_whole_model(self, folder: str) -> None:
        """The model in one piece, also where its checkpoints are in parts."""
        if is_taken_apart(self.model_wrapped) and not is_peft_model(self.model):
            # as accelerate does it, which asks for stage3_gather_16bit_weights_on_model_save first
            self._save_gathered(folder, self.model_wrapped._zero3_consolidated_16bit_state_dict())
            return
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is not None and "SHARDED" in str(plugin.state_dict_type):
            self._save_gathered(folder, self.accelerator.get_state_dict(self.model))
        super().save_model(folder, _internal_call=True)

    def _save_gathered(self, folder: str, state_dict: dict[str, Any] | None) -> None:
        # transformers 5.17 does not ask in _save, and processes would write over each other; only the first has all
        if self.args.should_save and state_dict:
            self._save(folder, state_dict=state_dict)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with ExitStack() as stack, warnings.catch_warnings():
            for part in self.parts:
                stack.enter_context(part.around_save())
            # PEFT looks for the base model's config.json, which a base from a single file does not have
            warnings.filterwarnings("ignore", message="Could not find a config file in")
            with _secrets_kept_out_of_files(self):
                super()._save(output_dir, state_dict)
            if self.args.should_save:
                self.add_to_saved(Path(output_dir or self.args.output_dir), state_dict)

    def add_to_saved(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        """Write what else belongs to a saved model."""


@contextmanager
def _secrets_kept_out_of_files(trainer: Any) -> Iterator[None]:
    """Around what transformers does with a trainer's arguments: it pickles them, and may need their token to push.

    For this time `trainer.args` is a copy that reads as ever and is pickled (into training_args.bin) without secrets.
    """
    args = trainer.args
    trainer.args = copy.copy(args)
    vars(trainer.args)["__reduce_ex__"] = args.without_secrets().__reduce_ex__
    try:
        yield
    finally:
        trainer.args = args
