"""The steps of the trainer's constructor, and what a run does before its first step."""

from __future__ import annotations

from typing import Any

import attrs
from accelerate.utils import gather_object

from sftcore.config.sft_config import SFTConfig
from sftcore.data.images.expand import is_vision
from sftcore.data.ranks import rank_of, shared_folder
from sftcore.data.sets import DataPreparation
from sftcore.display.stages import stage
from sftcore.model.bound_loss import BoundLoss
from sftcore.model.memory.in_backward import InBackward
from sftcore.model.precision import wants_master_weights
from sftcore.model.processor import processor_of
from sftcore.model.unwrap import causal_model
from sftcore.train import refusals
from sftcore.train.account.census import Census
from sftcore.train.account.row_losses import RowLosses
from sftcore.train.account.written import RowsFile
from sftcore.train.arguments import as_given, max_length_of, prepare_tokenizer, refuse_collator, set_up_trainer
from sftcore.train.evaluating import EvaluatingTrainer
from sftcore.train.guard.limits import refuse_beyond_tables
from sftcore.train.loading import load_for_run
from sftcore.train.own.hooks import gradient_hooks_paused
from sftcore.train.parts.evaluation import measure_likelihood
from sftcore.train.parts.optimizer import fit_optimizer
from sftcore.train.parts.randomness import Randomness
from sftcore.train.parts.trials import try_plugins
from sftcore.train.processes.workers import refuse_unsent
from sftcore.train.settled import layouts_of, settle
from sftcore.util.claims import suspecting


class ConstructedTrainer(EvaluatingTrainer):
    """A trainer that is built step by step, and tried before it trains."""

    _proven: bool

    def _load_processor(self, model: Any, processor: Any, args: SFTConfig, *chosen: Any) -> tuple[Any, list[int]]:
        """Tokenizer or processor with the run's chat template and tokens, and the ids of tokens that came with it."""
        processor = processor_of(model, self.setup) if processor is None else processor
        if is_vision(processor) and self.setup.plan.model.vision is None:
            # only the processor could tell that a model reads images
            self.setup = set_up_trainer(attrs.evolve(self.setup.plan.model, vision=True), args, *chosen)
        self._tokenizer, new_ids = prepare_tokenizer(processor, args)
        return processor, new_ids

    def _make_preparation(self, processor: Any, args: SFTConfig, formatting_func: Any, positions: int | None) -> None:
        made = self._tokenizer, max_length_of(args, self._tokenizer, positions), formatting_func, processor
        self.data = DataPreparation(self.setup, *made, rank_of(args), shared_folder(args))

    def _prepare(self, dataset: Any, name: str) -> Any:
        """Rows as tokens and labels: of one data set, a mapping of several, or None."""
        if dataset is None:
            return None
        return as_given(dataset, name, self.setup.plan) if self._skip_prepare else self.data.prepare_all(dataset, name)

    def _load_model(self, model: Any, processor: Any, args: SFTConfig, new_ids: list[int], rows: Any) -> None:
        """The model in line with its tokenizer, with kernels, loss and adapter."""
        with stage("Loading the model"):
            made = load_for_run(model, processor, self.setup, args, self._tokenizer, new_ids, rows)
        self.loaded, self.kernels, self.offloading = made.loaded, made.kernels, made.offloading
        self.bound_loss = BoundLoss(made.loss)
        self.router_aux_loss_coef, self.aux_loss_enabled = made.balance
        self.rows_as_loaded = made.num_rows

    def _make_collator(self, processor: Any, args: SFTConfig, own: Any, *datasets: Any) -> Any:
        self.packed = bool(args.packing or args.eval_packing) and not self._skip_prepare
        self.layouts = layouts_of(self.setup, processor, own, packed=self.packed)
        refuse_unsent(self.layouts, args, () if own else self.setup.plugins.answers("make_collator"))
        one_row = self.packed or bool(self.setup.plan.flattened)
        refuse_collator(self.layouts.taken, args, self.loaded.model, *datasets, own=own is not None, packed=one_row)
        refuse_beyond_tables(self.loaded.model, self.data, *datasets)
        return self.shown_collator()

    # --- Before the first step ----------------------------------------------------------------------------------------
    def fit_optimizer(self, *, own: bool) -> None:
        """Compare the optimizer with what trains; put it on float32 copies, or in the backward pass, as was asked."""
        settings = self.setup.plan.settings
        if self.args.optimizer_in_backward and self.in_backward is None:
            refusals.refuse_in_backward(own=own, copies=wants_master_weights(self.model, settings))
            self.in_backward = InBackward(self.optimizer)
        fit_optimizer(self.optimizer, self.model, settings, own=own)

    def prove(self, *, plugins: bool = True) -> None:
        """Try the head and what plugins claim, and prove documents apart: once, on the model as the run has placed it.

        All processes call it together; the first `train` and the first `evaluate` do.

        Raises:
            ModelError: documents that share a row are not kept apart in any way.
            BrokenPluginError: a plugin does not do what it claims.
        """
        if self._proven:
            return
        before = Randomness.now()
        bound = self.setup.plugins.bound
        trying = stage("Trying plugins on the model")
        with trying, suspecting(bound), self.noise.paused(), self.kernels.running(), self.accelerator.autocast():
            settle(self)
            reasons = [self.bound_loss.try_head(self.model, causal_model(self.loaded.model), self.args.device)]
            reasons = gather_object(reasons) if self.args.world_size > 1 else reasons
            self.bound_loss.reason = next(filter(None, reasons), "")
            if plugins:
                with gradient_hooks_paused(self.model):
                    try_plugins(self)
        self._proven = True
        evaluates = not self.is_in_train or self.args.eval_on_start or self.args.eval_strategy.value != "no"
        if plugins and evaluates:
            measure_likelihood(self, before_training=self.is_in_train)
        before.restore()

    def begin_rows(self) -> None:
        """Number the rows of the training set as it is now, whose losses are collected from here on."""
        args, leads = self.args, self.args.process_index == 0
        census = Census.of(self.data, self.train_dataset)
        self.row_losses = RowLosses(census if args.row_losses else None, self.gathered, leads=leads)
        loss = self.setup.plan.selected("loss")
        named = loss[0].name if loss else ""
        self.rows_file = RowsFile(self.data, census, self.eval_dataset, named, hidden=bool(args.push_to_hub))

    def gathered(self, found: Any) -> list[Any]:
        """What each of the processes that read different rows has found; all of them call this together."""
        size = self.args.world_size
        return [found] if size == 1 else gather_object([found])[:: size // self.data.rank.count]

    def _note(self, text: str) -> None:
        self.loaded = attrs.evolve(self.loaded, notes=(*self.loaded.notes, text))
