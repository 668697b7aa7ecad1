"""Every private method and attribute of `transformers.Trainer` that sftcore uses, here and in `seams_of_saving`.

Each method here is one of transformers' own, overridden once: it asks the run's parts, which are plain objects with
tests of their own, and calls the original. A test binds each signature in both supported sets of libraries
(tests/train/test_seams.py); whoever moves to a newer transformers starts there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from sftcore.core.errors import ConflictError
from sftcore.data.host_facts import WithFacts, facts_of, place_carried
from sftcore.model.memory.in_backward import InBackward
from sftcore.train.account.row_losses import RowLosses
from sftcore.train.checkpoint.resume import is_stream
from sftcore.train.checkpoint.state import refuse_no_step
from sftcore.train.guard.limits import TokenLimits, WithinLimits
from sftcore.train.guard.signals import EvaluationLeft, how_to_continue, stopped_by
from sftcore.train.guard.steps import Position
from sftcore.train.own.given import of_mapping
from sftcore.train.own.methods import handed_on
from sftcore.train.parts.evaluation import EvaluationLoss, best_metric_known
from sftcore.train.parts.loss import count_items
from sftcore.train.parts.randomness import Randomness
from sftcore.train.parts.rows import RowDistribution
from sftcore.train.parts.without_rows import OwnLossWithoutRows
from sftcore.train.processes.agreement import Agreement
from sftcore.train.processes.distributed import not_sharded_yet, nothing_sharded
from sftcore.train.processes.gathered import GatheredRows, inside, record_rows
from sftcore.train.seams_of_saving import SavingSeams

_SAVES_TOGETHER = "is_distributed_loading_by_transformers"
"""transformers' Trainer has it where all processes of a split model take part in saving it (5.24, not 5.17)."""


class TrainerSeams(SavingSeams):
    """Where a run's parts meet transformers' loop. A subclass sets them once transformers' constructor is through."""

    rows: RowDistribution
    without_rows: OwnLossWithoutRows
    agreement: Agreement
    row_losses: RowLosses
    loop_callback: TrainerCallback
    evaluation: EvaluationLoss
    in_backward: InBackward | None = None
    in_own_step = False
    """Whether a training step of transformers' own is computing a loss, which it differentiates once."""
    callback_handler: Any
    model_accepts_loss_kwargs: Any
    control: Any
    compute_metrics: Any
    _made_optimizer = False
    _flos_per_token: tuple[Any, int] = (None, 0)
    """The model, and what transformers estimates for one of its tokens."""
    _signature_columns: list[str] | None

    # --- Construction and preparation -------------------------------------------------------------------------------
    def _refuse_unknown_sharding(self) -> None:
        """Once accelerate is there: refuse what it would not shard, or transformers not save."""
        if self.args.fsdp and not self.is_fsdp_enabled:
            raise nothing_sharded(self.args)
        if self.get_tp_size() > 1 and not hasattr(self, _SAVES_TOGETHER):
            raise ConflictError(
                "this transformers saves a model that is split by tp_plan from one process alone, which would wait "
                "for the others for ever.",
                fix="Install a newer transformers (5.24), or drop tp_plan.",
            )

    def _disable_own_loss_and_noise(self) -> None:
        """Loss, noise and kernels are plugins; transformers must not apply its own a second time."""
        self.divides_itself = bool(self.is_divided)
        self.neftune_noise_alpha = None
        self.args.use_liger_kernel = False

    def _copy_batches_without_waiting(self) -> None:
        """Batches in pinned memory are copied to the device while the host goes on."""
        if self.args.dataloader_pin_memory and self.args.device.type != "cpu":
            self.accelerator.dataloader_config.non_blocking = True

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        self._made_optimizer = False
        prepared = super()._prepare_for_training(*args, **kwargs)
        callbacks = self.callback_handler.callbacks
        callbacks.append(callbacks.pop(callbacks.index(self.loop_callback)))  # behind those that came later
        self.agreement.begin(callbacks)
        self._fit_optimizer()
        self.prove()
        return prepared

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, unless there is one."""
        made = self.optimizer is None and self.optimizer_cls_and_kwargs is None
        optimizer = super().create_optimizer(*args, **kwargs)
        self._made_optimizer = made
        self._fit_optimizer()
        return optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self._fit_optimizer()  # which an override of create_optimizer made
        super()._load_optimizer_and_scheduler(checkpoint)

    def _fit_optimizer(self) -> None:
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self.fit_optimizer(own=self._made_optimizer)

    def fit_optimizer(self, *, own: bool) -> None:
        """Called once there is an optimizer, before its state is loaded, and may be called again."""

    def prove(self, *, plugins: bool = True) -> None:
        """Called once the model is wrapped, and may be called again."""

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = self.columns_for_collator()

    def columns_for_collator(self) -> list[str]:
        """The columns of a data set that reach the collator."""
        return []

    @property
    def is_divided(self) -> bool:
        """Whether the loss of a micro-batch is its share of the step's, which transformers need not divide.

        It is of a model that takes the normaliser itself, and wherever `compute_loss` has divided by it.
        """
        return bool(self.model_accepts_loss_kwargs)

    @is_divided.setter
    def is_divided(self, value: bool) -> None:
        self.model_accepts_loss_kwargs = value

    def to_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch on this process's device."""
        moved: dict[str, Any] = self._prepare_inputs(inputs)
        return moved

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.as_the_model_takes(super()._prepare_inputs(inputs))

    def as_the_model_takes(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch as a subclass that calls the model itself may hand it to the model."""
        return inputs

    def items_of_step(self, batches: list[Any]) -> torch.Tensor | None:
        """What the loss of a step is divided by: the sum of weights in its batches, of all processes: () float32."""
        return self._get_num_items_in_batch(batches, torch.device(self.args.device))

    # --- Rows -------------------------------------------------------------------------------------------------------
    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        def make(rows: Any) -> Any:
            return super(TrainerSeams, self)._get_dataloader(rows, description, batch_size, *args, **kwargs)

        training = bool(kwargs.get("is_training"))
        loader = self.rows.loader(make, dataset, batch_size=batch_size, training=training)
        base = inside(loader)
        by_row = training and self.args.row_losses
        base.collate_fn = WithFacts(WithinLimits(base.collate_fn, TokenLimits.of(self.model)), by_row)
        if not training:
            record_rows(loader, self.accelerator)
            if is_stream(dataset) and base.num_workers > 1 and (self.compute_metrics or description == "test"):
                base.num_workers = 1  # several would take turns, and give the rows in another order
        return loader

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return self.rows.sampler(super()._get_train_sampler(*args, **kwargs))

    def get_train_dataloader(self) -> Any:
        """The loader, whose batches and place are remembered."""
        loader = super().get_train_dataloader()
        read_elsewhere = self.train_dataset is self.eval_dataset or bool(self.args.dataloader_num_workers)
        self.resumption.watch(loader, only_here=is_stream(self.train_dataset) and not read_elsewhere)
        self.guard.watch(loader if has_length(self.train_dataset) else None)
        return loader

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The micro-batches of one step, and the sum of their weights over all processes."""
        batches = self.rows.take(epoch_iterator, num_batches)
        return batches, self._get_num_items_in_batch(batches, device)

    def _batches_drawn(self, batches: list[Any]) -> None:
        for part in self.parts:
            part.batches(batches)
        if self.resumption.random_is_due():
            self._load_rng_state(self.resumption.folder)
        drawn = self.resumption.batches_drawn - len(batches)
        rows = [self.guard.rows_of(drawn + place) for place in range(len(batches))]
        for batch in batches:
            place_carried(batch)
        self.row_losses.drawn(list(map(facts_of, batches)), rows)
        self.without_rows.put_on(self, batches, *self.rows.with_rows(drawn, len(batches)))

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        if not batch_samples or "labels" not in batch_samples[0]:
            return None
        num_items = count_items(batch_samples).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            num_items = self.accelerator.gather(num_items).sum()
        return num_items

    # --- One step ---------------------------------------------------------------------------------------------------
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Forward and backward of one micro-batch."""
        self.is_divided, self.in_own_step = self.divides_itself, True
        try:
            if self.in_backward is None:
                return super().training_step(*args, **kwargs)
            self.prove()  # whose trials go backward too, and take no step
            with self.in_backward.training():
                return super().training_step(*args, **kwargs)
        finally:
            self.in_own_step = False

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """transformers' estimate; it goes through all modules of a model once, not in each micro-batch."""
        name = getattr(self.model, "main_input_name", "input_ids")
        if name not in inputs:
            return 0
        if self._flos_per_token[0] is not self.model:
            self._flos_per_token = self.model, super().floating_point_ops({name: inputs[name].new_empty(1)})
        return self._flos_per_token[1] * int(inputs[name].numel())

    def _loss_computed(self, loss: torch.Tensor) -> None:
        for part in self.parts:
            part.after_backward(loss)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # of sharded parameters each process has its part, which cannot be gathered as a tensor of its own
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.without_rows.take_off(self)
        for part in self.parts:
            part.before_optimizer(norm)
        return norm

    def _remember_step(self) -> Callable[[], None]:
        """What undoes the step that begins now: its gradients, and what of it was counted for the log."""
        sums, loss, collected = self.metrics.sums(), self._tr_loss.clone(), self.row_losses.mark()

        def undo() -> None:
            self.model_wrapped.zero_grad()
            self.metrics.put_back(sums)
            self.row_losses.put_back(collected)
            self._tr_loss.copy_(loss)
            self._globalstep_last_logged += 1  # the mean is over the steps that were taken

        return undo

    def _position(self) -> Position:
        return Position(self.state.global_step, self.resumption.epoch, self.resumption.batches_drawn)

    # --- Epochs, logs and evaluations within training ---------------------------------------------------------------
    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        if resume_from_checkpoint is not None:
            self._read_state(resume_from_checkpoint)
        found: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None:
            self.state.compute_steps(self.args, max_steps)  # else those of the checkpoint would hold
            refuse_no_step(self.state.global_step, max_steps, Path(self.args.output_dir))
        if self.resumption.saved is not None and self.resumption.folder is not None:
            self.row_losses.restore(self.resumption.saved.rows, Path(self.resumption.folder))
        return self.resumption.first_batch(found, streams=is_stream(self.train_dataset))

    def continue_sums(self) -> None:
        """Once transformers has set its counters to zero: what was counted before the checkpoint."""
        saved = self.resumption.saved
        if self.state.global_step:
            self.args.eval_on_start = False
        if saved is None:
            return
        self.resumption.first_step, self._initial_global_step = int(self.state.global_step), 0
        self._tr_loss += saved.loss_sum
        self._total_loss_scalar = saved.total_loss
        self._globalstep_last_logged = saved.logged_at
        self.resumption.grad_norm, self.resumption.learning_rate = saved.grad_norm, saved.learning_rate
        self.metrics.restore(saved.metrics)
        self.guard.restore(saved.watch)

    def _run_epoch(self, **kwargs: Any) -> None:
        first = kwargs["epoch"] == kwargs["epochs_trained"]
        self.resumption.steps_in_epoch = kwargs["steps_in_epoch"]
        if first:
            named = ("model", "trial", "ignore_keys_for_eval", "start_time")
            self._do_what_was_due(*(kwargs[name] for name in named))
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        self.resumption.enter_epoch(
            kwargs["epoch"], kwargs["train_dataloader"], first=first, load_random=self._load_rng_state
        )
        with handed_on(self, self._batches_drawn, self._loss_computed):
            super()._run_epoch(**kwargs)

    def _do_what_was_due(self, model: Any, trial: Any, ignore_keys: Any, start_time: Any) -> None:
        """An evaluation, or the end of an epoch, that the checkpoint came before."""
        resumption = self.resumption
        if resumption.saved is not None and (resumption.saved.evaluate or resumption.saved.end_epoch):
            self._load_rng_state(resumption.folder)
        for what in resumption.due():
            if self.control.should_training_stop:  # a signal came
                continue
            if what == "epoch end":
                resumption.epoch_is_over = True
                self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            else:
                self.control.should_evaluate = True
            norm, rate = resumption.grad_norm, resumption.learning_rate
            self._maybe_log_save_evaluate(
                self._tr_loss, norm, model, trial, resumption.epoch, ignore_keys, start_time, learning_rate=rate
            )

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *args: Any, **kw: Any
    ) -> None:
        before = Randomness.now() if self.control.should_evaluate else None
        logged_before = self._globalstep_last_logged
        if self.control.should_log and self.state.global_step > logged_before:
            self.agreement.step_is_logged()
        try:
            with best_metric_known(self.args, self.state):
                super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kw)
        except EvaluationLeft:
            assert before is not None
            before.restore()  # the evaluation is done again from its start
            self.metrics.forget_evaluation()
            self.resumption.due_evaluation, self.args.save_only_model = True, False
            if self.saves_on_signal:
                self._save_checkpoint(model, trial)
            self.control.should_training_stop = True
        finally:
            if self._globalstep_last_logged > logged_before:
                tr_loss.zero_()  # transformers takes the sum from itself, which of NaN leaves NaN

    @property
    def saves_on_signal(self) -> bool:
        return str(getattr(self.args.save_strategy, "value", self.args.save_strategy)) != "no"

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: Any) -> Any:
        self._do_what_was_due(self.model_wrapped, trial, None, start_time)  # where no epoch was left to run
        if not self.guard.stopped_by:
            return super()._finalize_training(trial, num_train_samples, start_time)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self._finish_current_push()
        self.is_in_train = False
        step = self.state.global_step
        checkpoint = f"{self._get_output_dir(trial)}/checkpoint-{step}" if self.saves_on_signal else None
        if self.args.process_index == 0:
            how_to_continue(self.guard.stopped_by, step, checkpoint)
        raise stopped_by(self.guard.stopped_by, step=step, checkpoint=checkpoint)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """The loop of `evaluate` and `predict`; its loss is the mean over the supervised tokens of all processes.

        Raises:
            ConflictError: FSDP 2 has not sharded the model yet.
        """
        if self.accelerator.is_fsdp2 and self.model_wrapped is self.model and not self.is_in_train:
            raise not_sharded_yet()
        prefix = kwargs.get("metric_key_prefix", args[3] if len(args) > 3 else "eval")
        self.evaluation.begin(prefix)
        compute, rows = (
            self.compute_metrics,
            GatheredRows(dataloader, self.accelerator, self.args.eval_do_concat_batches),
        )
        if compute is not None:
            self.compute_metrics = rows.measured(of_mapping(compute), each_batch=self.args.batch_eval_metrics)
        try:
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.compute_metrics = compute
        if output.metrics is not None and f"{prefix}_loss" in output.metrics:
            self.evaluation.fill(output.metrics, self.accelerator)
        return rows.in_order(output)

    def learning_rate_now(self) -> float:
        rate: float = self._get_learning_rate()
        return rate
