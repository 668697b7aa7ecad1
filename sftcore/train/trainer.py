"""SFTTrainer: the order of the steps of a run, and nothing else."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments, set_seed

from sftcore.config.setup import check
from sftcore.config.sft_config import SFTConfig, as_sft_config, secrets_kept_out_of_files
from sftcore.core.errors import ConflictError, DataError, OptionTypeError
from sftcore.core.types import LoadedModel
from sftcore.data.images.expand import is_vision
from sftcore.data.images.pictures import DOCUMENTS
from sftcore.data.ranks import rank_of, shared_folder
from sftcore.data.sets import DataPreparation
from sftcore.documents.shared_rows import SharedRows, layout_of
from sftcore.model.bound_loss import NUM_ITEMS, WEIGHTS
from sftcore.model.build import (
    Noise,
    adopt_model,
    attention_of,
    finish_model,
    load_model,
    load_processor,
    refuse_unsupported,
)
from sftcore.model.embeddings import num_rows, save_grown_rows
from sftcore.model.kernels import Kernels
from sftcore.model.memory.allocator import return_large_blocks
from sftcore.model.memory.checkpointing import checkpoint_selectively, take_selective
from sftcore.model.memory.offload import offloading_of, refuse_on_cpu
from sftcore.model.precision import add_master_weights, cast_adapter, running_dtype, wants_master_weights
from sftcore.model.tokens import fit_model, supervised_ids, untrained_tokens
from sftcore.model.unwrap import causal_model, is_peft_model
from sftcore.model.vision import freeze_vision
from sftcore.train.arguments import (
    RAW_COLUMNS,
    current_name,
    max_length_of,
    model_request,
    prepare_tokenizer,
    refuse_text_collator,
    set_up_trainer,
    skips_preparation,
)
from sftcore.train.checkpoint.sealed import SealedTrainer
from sftcore.train.guard.watched import WatchedTrainer
from sftcore.train.metrics import Metrics
from sftcore.train.ranked import RankedTrainer
from sftcore.train.record.card import write_card
from sftcore.train.record.recorder import RunRecorder
from sftcore.util.disk import make_output_dir


class SFTTrainer(WatchedTrainer, SealedTrainer, RankedTrainer):
    """Supervised fine-tuning of a causal language model. Arguments and defaults are TRL's.

    Args:
        model: a hub id or folder, a `PreTrainedModel` or a `PeftModel`.
        args: `SFTConfig`; a plain `TrainingArguments` is converted, None is `SFTConfig("<model>-SFT")`.
        data_collator: replaces the collator plugin.
        train_dataset: `Dataset` or `IterableDataset`, in any format that an installed plugin reads.
        eval_dataset: one, or a mapping of several.
        processing_class: tokenizer or processor; the model's own by default.
        compute_loss_func: `(outputs, labels, num_items_in_batch) -> loss`, on the full logits.
        compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics: as in
            `transformers.Trainer`; metrics on logits cost a second forward pass.
        quantization_config: goes to `from_pretrained` where `model` is a name.
        peft_config: any PEFT configuration; the adapter plugin applies it.
        formatting_func: from a row to a text, or to a list of texts; replaces the format.
        tokenizer: older name of `processing_class`.

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
    ) -> None:
        processing_class = current_name(processing_class, tokenizer)
        args = as_sft_config(args, model if isinstance(model, str) else model.config._name_or_path or "model")
        request = model_request(model, args, quantization_config, processing_class)
        if train_dataset is None:
            raise DataError("`train_dataset` is required.", fix="Pass a datasets.Dataset or IterableDataset.")
        if isinstance(train_dataset, Mapping):
            raise OptionTypeError(
                f"train_dataset is one data set, got a {type(train_dataset).__name__} of {', '.join(train_dataset)}.",
                where="SFTTrainer",
                fix=f"Pass one of them: train_dataset=data[{next(iter(train_dataset), 'train')!r}].",
            )

        self.setup = set_up_trainer(request, args, peft_config, data_collator)
        chosen = [one.label for one in self.setup.plan.selected("loss") if not one.default]
        if compute_loss_func is not None and chosen:
            raise ConflictError(
                f"compute_loss_func would replace {chosen[0]}, which was chosen.", fix="Drop one of them."
            )
        check(self.setup, needs_tokenizer=processing_class is None)
        refuse_on_cpu(args)
        make_output_dir(args.output_dir)
        if args.return_freed_memory:
            return_large_blocks()
        set_seed(args.seed)

        processing_class = processing_class or load_processor(self.setup.plan, self.setup.plugins)
        if is_vision(processing_class) and self.setup.plan.model.vision is None:
            # only the processor could tell that a model from the hub reads images
            self.setup = set_up_trainer(attrs.evolve(request, vision=True), args, peft_config, data_collator)
        tokenizer, new_ids = prepare_tokenizer(processing_class, args)
        length = max_length_of(args, tokenizer)
        places = rank_of(args), shared_folder(args)
        self.data = DataPreparation(self.setup, tokenizer, length, formatting_func, processing_class, *places)
        self._skip_prepare = skips_preparation(args, train_dataset, data_collator)
        train_dataset = self._prepared(train_dataset, "train_dataset", data_collator)
        if eval_dataset is not None:
            eval_dataset = self._prepared(eval_dataset, "eval_dataset", data_collator)

        if isinstance(train_dataset, IterableDataset) and args.accelerator_config.dispatch_batches is None:
            args.accelerator_config.dispatch_batches = False
        self.loaded = self._loaded(model, processing_class, args, new_ids, train_dataset)
        if kept := take_selective(args):
            checkpoint_selectively(causal_model(self.loaded.model), kept)
        self.offloading = offloading_of(self.loaded.model, args)
        collator = data_collator or self.setup.plugins.one(
            "make_collator", processor=processing_class, plan=self.setup.plan
        )
        refuse_text_collator(collator, train_dataset, eval_dataset, own=data_collator is not None)
        packed = bool(args.packing or args.eval_packing) and not self._skip_prepare
        layout = layout_of(collator, packed=packed)
        self.padding_free = layout.flattened
        self.noise = Noise(self.setup.plugins, self.setup.plan, self.loaded)
        self.recorder = RunRecorder(self)
        super().__init__(
            model=self.loaded.model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=[self.recorder, *(callbacks or [])],
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self._own_loss_and_noise()
        self.metrics = Metrics(self.accelerator, copies=self.get_tp_size())
        self.shared_rows = SharedRows()
        with self.accelerator.autocast():
            attention = attention_of(self.setup.plan, self.setup.plugins)
            backend = attention[1] if attention else None
            self.shared_rows.prove(self.model, backend, layout, max_length=self.data.max_length)
            self.shared_rows.prove_images(self.model, backend, layout, collator, train_dataset)
        self.kernels.off()
        self.model.add_model_tags(list(self._tag_names))

    # --- Construction ---------------------------------------------------------------------------------------------
    def _loaded(self, model: Any, processor: Any, args: SFTConfig, new_ids: Sequence[int], rows: Any) -> LoadedModel:
        plan, plugins = self.setup.plan, self.setup.plugins
        if isinstance(model, str):
            loaded = load_model(plan, plugins, processor)
        else:
            loaded = adopt_model(model, processor, plan, plugins)
        self._rows_as_loaded = num_rows(loaded.model)
        notes = fit_model(loaded.model, self.data.tokenizer, args, new_ids, rows)
        notes = (*notes, *freeze_vision(loaded.model, args.freeze_vision_tower))
        loaded = attrs.evolve(loaded, notes=(*loaded.notes, *notes))
        self._balance_experts(loaded.model, args)
        refuse_unsupported(plan, plugins, loaded.model, running_dtype(loaded.model, args), args.device.type)
        self.kernels = Kernels(plugins, plan)
        loaded = finish_model(loaded, plan, plugins, self.kernels)
        untrained = untrained_tokens(loaded.model, self.data.tokenizer, new_ids, supervised_ids(rows))
        if untrained is None:
            return loaded
        warnings.warn(str(untrained), stacklevel=3)
        return attrs.evolve(loaded, notes=(*loaded.notes, str(untrained)))

    def _balance_experts(self, model: Any, args: SFTConfig) -> None:
        config = model.config.get_text_config()
        given = args.router_aux_loss_coef
        has_experts = hasattr(config, "output_router_logits")
        if given and not has_experts:
            raise ConflictError(
                f"router_aux_loss_coef is {given}, and {type(model).__name__} has no experts to balance.",
                fix="Remove router_aux_loss_coef.",
            )
        self.router_aux_loss_coef = getattr(config, "router_aux_loss_coef", 0.0) if given is None else given
        self.aux_loss_enabled = has_experts and bool(self.router_aux_loss_coef)
        if has_experts:
            config.output_router_logits = self.aux_loss_enabled

    def _own_loss_and_noise(self) -> None:
        # The bound forward takes the normaliser whatever the model's own signature says
        self.model_accepts_loss_kwargs = True
        # Noise and kernels are plugins here; transformers' Trainer must not apply its own a second time
        self.neftune_noise_alpha = None
        self.args.use_liger_kernel = False

    def _prepared(self, dataset: Any, name: str, data_collator: Any) -> Any:
        if not self._skip_prepare:
            return self.data.prepare_all(dataset, name)
        if not isinstance(dataset, (Mapping, Dataset, IterableDataset)):
            return dataset  # any torch data set may go to a user's collator
        for one in dataset.values() if isinstance(dataset, Mapping) else [dataset]:
            columns = one.column_names or ()
            masked = {"completion_mask", "assistant_masks"} & set(columns) and "labels" not in columns
            if data_collator is None and masked:
                raise DataError(
                    'the rows have masks but no "labels", and skip_prepare_dataset leaves labels to you.',
                    where=name,
                    fix='Add a "labels" column (-100 where a token does not count), or drop skip_prepare_dataset.',
                )
        return dataset

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The optimizer; on float32 copies of what trains below float32, where the plan says so."""
        own, optimizer = self.optimizer is None, super().create_optimizer(*args, **kwargs)
        if own and wants_master_weights(self.model, self.setup.plan.settings):
            add_master_weights(optimizer)
        return optimizer

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(*args, **kwargs)
        if is_peft_model(self.model):
            # PEFT raises an adapter that it loads to float32, whatever it was trained in
            cast_adapter(self.model, self.args.adapter_dtype)

    # --- Training ---------------------------------------------------------------------------------------------------
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, with the run's kernels and noise on; they are off again afterwards, whatever happens."""
        self.noise.on()
        try:
            with self.kernels.running():
                return super().train(*args, **kwargs)
        finally:
            self.noise.off()

    @contextlib.contextmanager
    def compute_loss_context_manager(self) -> Iterator[None]:
        """Around the forward pass: autocast, and the offloading of what it saves."""
        with super().compute_loss_context_manager(), self.offloading() if self.offloading else contextlib.nullcontext():
            yield

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the plugin, from the model's own forward; with a user's loss function, that one's."""
        inputs = {**self.shared_rows(inputs, self._mode), "use_cache": False}
        weights, num_tokens = inputs.pop("weights", None), inputs.pop("num_tokens", None)
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        without_labels = {key: value for key, value in inputs.items() if key != "labels"}
        extra = {} if weights is None else {WEIGHTS: weights}
        normaliser = num_items_in_batch
        if normaliser is None:
            normaliser = self._num_items([{**inputs, "weights": weights}])
        # A row's first token has nothing to be predicted from, not even where virtual tokens stand before it
        labels = inputs["labels"].clone()
        labels[:, 0] = -100
        found = model(
            **{**inputs, "labels": labels},
            **extra,
            **{NUM_ITEMS: torch.as_tensor(normaliser, device=inputs["labels"].device)},
        )
        self.metrics.add(self._mode, found, inputs, num_tokens)
        outputs = None
        if self.compute_loss_func is not None or self.label_smoother is not None or return_outputs:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not return_outputs):
                outputs = model(**without_labels)
        loss = found["loss"]
        if self.compute_loss_func is not None and (num_tokens is None or num_tokens.sum() > 0):
            loss = self.compute_loss_func(outputs, inputs["labels"], num_items_in_batch=num_items_in_batch)
        elif self.label_smoother is not None:
            kwargs = {"num_items_in_batch": num_items_in_batch} if num_items_in_batch is not None else {}
            loss = self.label_smoother(outputs, inputs["labels"], shift_labels=True, **kwargs)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # every rank divides by the items of all ranks, and DDP averages their gradients
            loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.router_aux_loss_coef * found["aux_loss"] / steps
        if self._mode == "eval":
            self._add_eval_loss(loss, normaliser)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """One batch of an evaluation: logits are built only where something asks for them."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            if prediction_loss_only:
                return self.compute_loss(model, inputs).detach(), None, None
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), outputs.logits.detach(), inputs["labels"]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate without noise; a raw data set is prepared as those of the constructor were."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._prepared_for_evaluation(eval_dataset)
        was_on = self.noise.off()
        try:
            metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            return metrics
        finally:
            if was_on:
                self.noise.on()

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The loop of `evaluate` and `predict`, with the run's kernels on."""
        with self.kernels.running():
            return super().evaluation_loop(*args, **kwargs)

    def _prepared_for_evaluation(self, dataset: Any) -> Any:
        if isinstance(dataset, Mapping):
            return {key: self._prepared_for_evaluation(one) for key, one in dataset.items()}
        known = self.eval_dataset.values() if isinstance(self.eval_dataset, Mapping) else [self.eval_dataset]
        if self._skip_prepare or any(dataset is one for one in (*known, self.train_dataset)):
            return dataset
        return self.data.prepare(dataset, "eval_dataset")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add entropy, mean_token_accuracy and num_tokens to what is logged; at evaluation with the prefix `eval_`."""
        mode = self._mode
        prefix = "" if mode == "train" else "eval_"
        logs.update({f"{prefix}{key}": value for key, value in self.metrics.drain(mode).items()})
        super().log(logs, start_time)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "labels", "weights", "seq_lengths", DOCUMENTS]
            if self._skip_prepare and is_vision(self.processing_class):
                self._signature_columns += RAW_COLUMNS

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    # --- Saving -----------------------------------------------------------------------------------------------------
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        was_on = self.noise.off()
        try:
            with warnings.catch_warnings(), secrets_kept_out_of_files(self):
                # PEFT looks for the base model's config.json, which a base from a single file does not have
                warnings.filterwarnings("ignore", message="Could not find a config file in")
                super()._save(output_dir, state_dict)
            if not self.args.should_save:
                return
            folder = output_dir or self.args.output_dir
            if is_peft_model(self.loaded.model) and num_rows(self.loaded.model) != self._rows_as_loaded:
                save_grown_rows(self.loaded.model, Path(folder), state_dict)
            self.setup.plugins.all("save_model", loaded=self.loaded, folder=folder)
            if is_peft_model(self.loaded.model) and self.loaded.model.generation_config is not None:
                # PEFT saves the adapter alone, and the base's own stops may be others
                self.loaded.model.generation_config.to_json_file(Path(folder) / "generation_config.json")
            write_card(self, Path(folder))
            self.recorder.check_parity(Path(folder))
            self.recorder.write_manifest(Path(folder))
        finally:
            if was_on:
                self.noise.on()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the model card into the output folder."""
        write_card(self, Path(self.args.output_dir))
