"""SFTTrainer: the order of the steps of a run, and nothing else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments
from transformers.trainer_utils import TrainOutput

from sftcore.config.sft_config import SFTConfig
from sftcore.core.visible import visible
from sftcore.data.host_facts import facts_of
from sftcore.data.images.expand import is_vision
from sftcore.data.images.pictures import DOCUMENTS
from sftcore.documents.shared_rows import SharedRows
from sftcore.losses.asked_again import asked_again
from sftcore.model.bound_loss import TOKEN_LOSSES
from sftcore.model.memory.spared import spared_memory
from sftcore.model.skeleton import skeleton_of
from sftcore.model.unwrap import causal_model
from sftcore.model.vision import FeatureDtypes, frozen_statistics
from sftcore.train import refusals
from sftcore.train.account.row_losses import RowLosses
from sftcore.train.arguments import (
    RAW_COLUMNS,
    begin_run,
    check_trainer,
    kept,
    model_request,
    num_embeddings,
    positions_for,
    refuse_data,
    set_up_trainer,
    skips_preparation,
)
from sftcore.train.checkpoint.atomic import AtomicCheckpoints
from sftcore.train.checkpoint.resume import Resumption
from sftcore.train.checkpoint.same_run import RunFacts
from sftcore.train.checkpoint.state import NothingLeft
from sftcore.train.checkpoint.untrusted import reading
from sftcore.train.construction import ConstructedTrainer
from sftcore.train.estimate.batch_size import fitted
from sftcore.train.guard.divergence import LossLevel, Nonfinite
from sftcore.train.guard.named_rows import named_rows
from sftcore.train.guard.signals import Listener
from sftcore.train.guard.steps import StepGuard
from sftcore.train.guard.watchdog import LossWatch
from sftcore.train.loop_callback import LoopCallback
from sftcore.train.losses.weighted import refuse_unread_weights
from sftcore.train.own.columns import refuse_columns_left_out
from sftcore.train.own.methods import CALL_THE_MODEL, is_overridden
from sftcore.train.own.plain_ways import PlainWays
from sftcore.train.own.settings import as_made, take_changes
from sftcore.train.parts.cache import CacheSetting
from sftcore.train.parts.callbacks import callbacks_of
from sftcore.train.parts.evaluation import EvaluationLoss, measure_likelihood
from sftcore.train.parts.loss import LossBatch, chosen_loss, losses_of, with_balance
from sftcore.train.parts.metrics import Metrics
from sftcore.train.parts.noise import TrainingNoise
from sftcore.train.parts.rows import RowDistribution
from sftcore.train.parts.without_rows import OwnLossWithoutRows
from sftcore.train.processes.agreement import Agreement
from sftcore.train.processes.distributed import prepare_processes
from sftcore.train.record.beside import write_beside
from sftcore.train.record.card import write_card
from sftcore.train.record.compiled import Compilations
from sftcore.train.record.page import RunPage
from sftcore.train.record.recorder import RunRecorder
from sftcore.train.reporting.default import closing, show_progress
from sftcore.train.reporting.tracking import tracked
from sftcore.train.samples.prompts import questions_of
from sftcore.train.samples.sampler import Sampler
from sftcore.train.settled import attention_in, reads_by_row
from sftcore.train.trackers.told import take_over
from sftcore.util.claims import third_parties
from sftcore.util.warned import count


class SFTTrainer(ConstructedTrainer):
    """Supervised fine-tuning of a causal language model. Arguments and defaults are TRL's.

    Args:
        model: a hub id or folder, a `PreTrainedModel` or a `PeftModel`.
        args: `SFTConfig`; a plain `TrainingArguments` is converted, None is `SFTConfig("<model>-SFT")`.
        data_collator: replaces the collator plugin.
        train_dataset: `Dataset` or `IterableDataset`, in any format that an installed plugin reads; or a `Mixture` or
            a list of them.
        eval_dataset: one, or a mapping of several by name.
        processing_class: tokenizer or processor; the model's own by default.
        compute_loss_func: `(outputs, labels, num_items_in_batch) -> loss`, on the full logits; with an argument
            `weights` also given those of the tokens.
        compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics: as in
            `transformers.Trainer`; for metrics on logits the forward pass builds them all.
        quantization_config: goes to `from_pretrained` where `model` is a name.
        peft_config: any PEFT configuration; the adapter plugin applies it.
        formatting_func: from a row to a text, messages, (prompt, completion), or a list of them; replaces the format.
        tokenizer: older name of `processing_class`.

    The constructor calls no forward pass: the first `train` or `evaluate` tries the head and what plugins claim, and
    proves that documents which share a row are kept apart, on the device and in the dtype of the run.

    Raises:
        CheckError: what was found wrong before any weight was read.
        DataError, RowError: data that cannot be used, with the row.
        WriteError: output_dir or the cache cannot be written to.
        ConflictError: settings or plugins that exclude each other.
    """

    _tag_names = ("sftcore", "sft")

    def __init__(
        self,
        model: str | PreTrainedModel | Any,
        args: SFTConfig | TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[..., dict[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., Any] | None = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        formatting_func: Callable[[Any], Any] | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **older: Any,
    ) -> None:
        model, args, processing_class = refusals.accepted(locals())
        args = fitted(args, locals(), SFTTrainer)
        warned = count()
        request = model_request(model, args, quantization_config, processing_class)
        refuse_data(train_dataset)
        by_row = reads_by_row(type(self), SFTTrainer, compute_loss_func)
        chosen = args, peft_config, data_collator, attention_in(model), by_row
        self.setup = set_up_trainer(request, *chosen)
        measured = refusals.adds_metrics(type(self), SFTTrainer, compute_metrics, callbacks)
        self.measures_more = measured or bool(args.callbacks)
        found = refusals.run_problems(args, train_dataset, eval_dataset, measured, callbacks)
        named, skeleton = processing_class is None, skeleton_of(model, self.setup.plan)
        check_trainer(self.setup, args, compute_loss_func, found, needs_tokenizer=named, skeleton=skeleton)
        begin_run(args)
        processor, new_ids = self._load_processor(model, processing_class, *chosen)
        self._make_preparation(processor, args, formatting_func, positions_for(skeleton, model, self.setup.plan))
        self.data.embeddings = num_embeddings(skeleton)
        self._skip_prepare = skips_preparation(args, train_dataset, data_collator)
        given = train_dataset, eval_dataset
        train_dataset = self._prepare(train_dataset, "train_dataset")
        eval_dataset = self._prepare(eval_dataset, "eval_dataset")
        questions = questions_of(args.sample_prompts, self.data, *given, prepared=not self._skip_prepare)
        refusals.refuse_no_batch(args, train_dataset, eval_dataset)
        refuse_unread_weights(compute_loss_func, [train_dataset, eval_dataset])
        self._load_model(model, processor, args, new_ids, train_dataset)
        collator = self._make_collator(processor, args, data_collator, train_dataset, eval_dataset)
        prepare_processes(args, self.loaded.model)
        self.recorder, self.sampler, self.page = RunRecorder(self), Sampler(self, questions), RunPage(self, warned)
        with refusals.of_transformers(), kept(getattr(self.loaded.model, "config", None), "use_cache"):
            super().__init__(
                model=self.loaded.model, args=args, data_collator=collator, train_dataset=train_dataset,
                eval_dataset=eval_dataset, processing_class=processor, compute_loss_func=compute_loss_func,
                compute_metrics=compute_metrics,
                callbacks=[self.recorder, self.sampler, self.page, *callbacks_of(args), *(callbacks or [])],
                optimizers=optimizers, optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
                preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            )  # fmt: skip
        take_over(self)
        self._make_parts()
        show_progress(self)
        self._settings = as_made(self.args)

    def _make_parts(self) -> None:
        """What the loop is made of beside transformers' own; see `sftcore.train.seams` for when each is called."""
        args, accelerator = self.args, self.accelerator
        self._refuse_unknown_sharding()
        self._disable_own_loss_and_noise()
        self._copy_batches_without_waiting()
        self._proven = False
        self.nothing_left = ""
        self.metrics = Metrics(accelerator, copies=self.get_tp_size())
        self.shared_rows = SharedRows()
        self.features = FeatureDtypes(self.loaded.model)
        self.plain_ways = PlainWays(self._note, says=args.process_index == 0)
        self.facts = RunFacts(self)
        self.evaluation = EvaluationLoss()
        self.rows = RowDistribution(args, accelerator, self.data, self.to_device)
        self.agreement = Agreement(accelerator)
        self.row_losses = RowLosses(None, self.gathered, leads=args.process_index == 0)
        self.without_rows = OwnLossWithoutRows(SFTTrainer.compute_loss, accelerator, self.metrics)
        self.signals = Listener(saves=self.saves_on_signal)
        self.resumption = Resumption(accelerator)
        self.checkpoints = AtomicCheckpoints(args, accelerator)
        self.noise = TrainingNoise(self.setup.plugins, self.setup.plan, self.loaded)
        self.guard = StepGuard(
            args.on_nonfinite,
            accelerator,
            position=self._position,
            received=lambda: self.signals.received,
            remember=self._remember_step,
            name_rows=lambda rows: named_rows(self, rows),
            suspects=third_parties(self.setup.plugins.bound),
        )
        self.cache = CacheSetting(getattr(self.loaded.model, "config", None), in_training=bool(args.use_cache))
        self.compilations = Compilations()
        self.parts = (self.resumption, self.guard, self.noise, self.cache, self.compilations)
        self.loop_callback = LoopCallback(self)
        self.add_callback(self.loop_callback)
        self.model.add_model_tags(list(self._tag_names))
        self.sampler.prepare()

    # --- Training ---------------------------------------------------------------------------------------------------
    def train(
        self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: list[str] | None = None
    ) -> Any:
        """Train, with the run's kernels and noise on; they are off again afterwards, whatever happens.

        SIGTERM and SIGINT end the step in progress, save a checkpoint (unless `save_strategy` is "no") and raise
        StoppedBySignal.

        Args:
            resume_from_checkpoint: a folder, "last" (or True), or "auto", which may begin from scratch.
            trial, ignore_keys_for_eval: as in `transformers.Trainer`.

        Returns:
            As transformers does. Where the checkpoint is at the last step already, `nothing_left` says so, the loss is
            0.0, there are no metrics, and nothing was written.

        Raises:
            CheckpointError: the checkpoint is not there, or damaged; or one cannot be written.
            ConflictError: another run writes to the output folder; a setting was changed in `args` too late.
            ResumeError: the run is not the one that the checkpoint was saved in.
            DivergenceError: NaN or Inf where `on_nonfinite` is "stop", or divergence where it is looked for.
            StoppedBySignal: a KeyboardInterrupt for SIGINT, a SystemExit for SIGTERM.
        """
        if trial is None:  # a search sets what it tries itself
            take_changes(self.args, self._settings)
        with self.checkpoints.owned():
            self.checkpoints.clear_leftovers()
            return self._train_as_owner(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _train_as_owner(self, resume_from_checkpoint: Any, trial: Any, ignore_keys_for_eval: list[str] | None) -> Any:
        args = self.args
        refusals.refuse_per_sample(self.model, self.optimizer)
        refusals.refuse_lost_hooks(self.model, sharded=self.is_fsdp_enabled)
        if self.data_collator is self._shown:
            refuse_columns_left_out(self, SFTTrainer)
        checkpoint = self.checkpoints.choose(resume_from_checkpoint)
        self.facts()  # read before anything is wrapped or moved
        self.resumption.begin()
        self.begin_rows()
        watchdog = LossWatch.of(args.loss_watchdog_threshold, args.loss_watchdog_patience)
        self.guard.begin(LossLevel.of(args.divergence_factor, self.loaded.model.config), watchdog)
        with (
            kept(args, "save_only_model", "eval_on_start"),  # a signal or a resumed run changes them
            self.noise.training(),
            self.cache.training(),
            frozen_statistics(self.loaded.model),
            self.compilations.counting(says=args.process_index == 0),
            self.kernels.running(),
            spared_memory(self.loaded.model, self.setup.plan),
            self.signals.listening(),
            reading(checkpoint),
            refusals.until_first_step(args, self.callback_handler.callbacks),
            tracked(args),
            closing(self),
            self.page.kept_up(),
        ):
            self.nothing_left = ""
            try:
                return super().train(checkpoint, trial, ignore_keys_for_eval)
            except NothingLeft as error:
                self.nothing_left = str(error)
                if args.process_index == 0:
                    print(
                        visible(f"resume     {checkpoint}: {error}; {args.output_dir} stays as it is"), file=sys.stderr
                    )
                return TrainOutput(self.state.global_step, 0.0, {})

    @contextlib.contextmanager
    def compute_loss_context_manager(self) -> Iterator[None]:
        """Around the forward pass: autocast, and the offloading of what it saves."""
        with super().compute_loss_context_manager(), self.offloading() if self.offloading else contextlib.nullcontext():
            yield

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the plugin, from the model's own forward; with a user's loss function, that one's.

        Args:
            model: as it is wrapped.
            inputs: a batch of the collator: input_ids and labels (B, T), and what else it gives.
            return_outputs: whether the model's outputs, with all logits, come with the loss, which is then computed
                from them. Both carry gradients wherever they are being computed.
            num_items_in_batch: what the loss is divided by: () float32, of the accumulated batch and all processes.
        """
        self.prove()
        mode, count = self._mode, num_items_in_batch
        facts, apart = facts_of(inputs), self.shared_rows(inputs, mode)
        batch = LossBatch.of(apart, count, routers=self.aux_loss_enabled, facts=facts)
        other = chosen_loss(batch, count, self.compute_loss_func, self.label_smoother)
        causal = causal_model(self.loaded.model)
        outputs_for = "compute_loss is asked for outputs" if return_outputs and mode == "train" else ""
        whole = self.plain_ways.builds_logits(model, causal, inputs, asked=outputs_for) or return_outputs
        once = self.in_own_step and not is_overridden(self, SFTTrainer, "compute_loss")
        with self.accelerator.autocast(), self.bound_loss.on(causal), asked_again(not once):
            found, outputs = losses_of(model, batch, self.bound_loss, other, with_outputs=whole)
        token_losses = found.pop(TOKEN_LOSSES, None)
        if mode == "train" and self.is_in_train:
            self.row_losses.add(token_losses, facts, self.resumption.epoch + 1)
        self.metrics.add(mode, found, batch)
        loss = found["loss"]
        self.is_divided = self.is_divided or count is not None
        if self.args.average_tokens_across_devices and count is not None:
            # every process divides by the items of all, and DDP averages their gradients
            loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled and not self.bound_loss.of_model:
            steps = self.current_gradient_accumulation_steps if count is not None else 1
            asked = bool(self.args.router_aux_loss_coef)
            loss = with_balance(loss, found, self.router_aux_loss_coef, steps, asked=asked)
            if isinstance(outputs, Mapping) and "loss" in outputs:
                share = with_balance(found["loss"], found, self.router_aux_loss_coef, steps, asked=asked)
                outputs["loss"] = share  # type: ignore[index]
        if mode == "eval":
            measure_likelihood(self)
            self.evaluation.add(loss, batch.request.num_items, batch.request.found.get("loss"))
        loss = self.without_rows.before_share(loss)
        return (loss, outputs) if return_outputs else loss

    def as_the_model_takes(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Images in the dtype of what takes them; documents kept apart already where a subclass calls the model."""
        inputs = self.features(inputs)
        if not is_overridden(self, SFTTrainer, *CALL_THE_MODEL):
            return inputs
        return self.shared_rows(inputs, self._mode)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add entropy, mean_token_accuracy and num_tokens to what is logged; at evaluation with its prefix.

        Speeds are those of this call of `train`, not of the steps before its checkpoint.
        """
        mode = self._mode
        prefix = "" if mode == "train" else f"{self.evaluation.prefix}_"
        if mode == "train":
            self.row_losses.collect()
        logs.update({f"{prefix}{key}": value for key, value in self.metrics.drain(mode).items()})
        if mode == "train" and "loss" in logs:
            logs.update(self.row_losses.logged())
        if "train_runtime" in logs and self.resumption.first_step:
            for name in ("train_samples_per_second", "train_steps_per_second"):
                logs[name] = round(logs[name] * self.resumption.share_of_this_call(self.state.global_step), 3)
        super().log(logs, start_time)

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    @property
    def nonfinite(self) -> Nonfinite:
        """The steps whose loss or gradients were not finite."""
        return self.guard.nonfinite

    @property
    def tags(self) -> tuple[str, ...]:  # of the model card
        return tuple(self._tag_names)

    def columns_for_collator(self) -> list[str]:
        """Columns of prepared rows; with a processor also those of rows that were not prepared."""
        raw = RAW_COLUMNS if self._skip_prepare and is_vision(self.processing_class) else []
        return ["input_ids", "labels", "weights", "seq_lengths", DOCUMENTS, *raw]

    # --- Saving -----------------------------------------------------------------------------------------------------
    def add_to_saved(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        """Write what else belongs to a saved model: grown rows, plugins' files, stops, card, parity and manifest."""
        write_beside(self, folder, state_dict)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the model card into the output folder."""
        write_card(self, Path(self.args.output_dir))
