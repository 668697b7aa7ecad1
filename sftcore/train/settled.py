"""What a trainer leaves open until its first step, attention and layout of rows: made ready, and settled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import attrs
from accelerate.utils import gather_object

from sftcore.core.errors import ModelError
from sftcore.data.collate import collator_of, keeping_labels
from sftcore.documents.layouts import RowLayouts, layout_of
from sftcore.documents.settle import Attempt, Settling
from sftcore.model.attention import replaced_attention
from sftcore.model.build import attention_of
from sftcore.model.precision import running_dtype
from sftcore.model.unwrap import causal_model
from sftcore.train.refusals import refuse_no_set
from sftcore.train.seams import TrainerSeams
from sftcore.util.claims import spelled
from sftcore.util.process_state import left_as_found

if TYPE_CHECKING:
    from sftcore.config.setup import Setup
    from sftcore.core.types import AttentionBackend

TAKE_BATCHES = (
    "compute_loss", "training_step", "prediction_step", "evaluation_loop", "get_batch_samples", "_prepare_inputs",
    "get_train_dataloader", "get_eval_dataloader",
)  # fmt: skip
"""Methods of a trainer that are given batches, or make them: a user's own may read their rows."""


class OpenLayout(TrainerSeams):
    """A trainer whose loaders take the layout that its first step settles; `layouts` are set before it is made."""

    layouts: RowLayouts
    packed: bool
    data_collator: Any
    _shown: Any = None

    def shown_collator(self) -> Any:
        """What users see as the trainer's collator.

        That of an open layout has rows side by side: rows end to end are for training, and the loss of an evaluation.
        """
        self._shown = self.layouts.side_by_side if self.layouts.are_open else self.layouts.taken
        return self._shown

    @contextmanager
    def _rows_as_trained(self) -> Iterator[None]:
        """Around the making of a loader: its rows have the layout that is settled when it starts."""
        own = self.data_collator
        if own is self._shown:
            self.data_collator = self.layouts
        try:
            yield
        finally:
            self.data_collator = own

    def get_train_dataloader(self) -> Any:
        """The loader of training rows, in the layout that the first step settles."""
        with self._rows_as_trained():
            return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The loader of evaluation rows: padded where their logits are handed to `compute_metrics`.

        Raises:
            DataError: there are none, or none of that name.
        """
        refuse_no_set(self.eval_dataset, eval_dataset)
        padded = self.compute_metrics is not None
        with nullcontext() if padded else self._rows_as_trained():
            return super().get_eval_dataloader(eval_dataset)

    @property
    def padding_free(self) -> bool:
        """Whether batches are rows end to end, without padding; of an open layout, once it is settled."""
        return layout_of(self.layouts.taken, packed=self.packed).flattened


def attention_in(model: Any) -> str | None:
    """What a ready model computes attention with, as transformers names it; None for the name of a model."""
    if isinstance(model, str):
        return None
    return replaced_attention(model) or getattr(model.config, "_attn_implementation", None)


def reads_by_row(trainer: type, own: type, compute_loss_func: Any) -> str:
    """What of the user's reads batches row by row: a loss function, an overridden method; empty where nothing does."""
    if compute_loss_func is not None:
        return "compute_loss_func"
    changed = [name for name in TAKE_BATCHES if getattr(trainer, name) is not getattr(own, name)]
    return f"{trainer.__name__}.{changed[0]}" if changed else ""


def layouts_of(setup: Setup, processor: Any, own: Any, *, packed: bool) -> RowLayouts:
    """The run's collator, or both where the layout is open: it is until the run's attention is settled.

    Raises:
        ModelError: rows are packed, and a collator does not say where their documents begin.
        ConflictError: the user's collator is for masked language models.
    """

    def made(setup: Setup) -> Any:
        return collator_of(setup.plugins, processor, setup.plan)

    plan = setup.plan
    names = [] if own else [*map(spelled, setup.plugins.answers("make_collator"))]
    try:
        with left_as_found(f"{names[0]}, on two small rows,") if names else nullcontext():
            found = RowLayouts.fixed(keeping_labels(own) if own else made(setup), packed=packed)
            if not own:
                _hold_layout(setup, found, packed=packed)
    except ModelError as error:
        raise ModelError(": ".join([*names, error.what]), where=error.where, fix=error.fix) from error
    by_default = own is None and all(one.default for one in plan.selected("collator")) and not plan.model.vision
    if by_default and (plan.open_layout or (packed and plan.candidates)):
        side_by_side, end_to_end = (made(setup.settled(None, flattened=one)) for one in (False, True))
        return RowLayouts(side_by_side, end_to_end, flattened=packed and bool(plan.flattened))
    return found


def _hold_layout(setup: Setup, layouts: RowLayouts, *, packed: bool) -> None:
    """Hold that the plugin of a run lays rows out as it says, which attention and proof were chosen by.

    Raises:
        FaultyPluginError: it does not.
    """
    said, layout = setup.plan.flattened, layout_of(layouts.taken, packed=packed)
    for one in setup.plugins.answers("flattens") if layout.seen and said is not None else ():
        if said != layout.flattened:
            how = "end to end in one" if layout.flattened else "side by side in two"
            raise one.origin("flattens").fault(f"answers {said}, and its collator lays two rows {how}")


def settle(trainer: Any) -> None:
    """Try what the plan expects, on the model as it is placed and wrapped; all processes take the same.

    Raises:
        ModelError: documents share rows because that was asked for, and nothing keeps them apart.
    """
    settled = _settling(trainer)()
    _take(trainer, settled.attempt)
    trainer.loaded = attrs.evolve(trainer.loaded, notes=(*trainer.loaded.notes, *settled.notes))


def expect(trainer: Any) -> None:
    """Take what `settle` does if it finds no fault, for a model that has no weights to try it with."""
    _take(trainer, _settling(trainer).take_expected())


def _take(trainer: Any, attempt: Attempt) -> None:
    if trainer.setup.plan.candidates or trainer.setup.plan.open_layout:
        trainer.setup = trainer.setup.settled(attempt.selection, flattened=attempt.flattened)


def _settling(trainer: Any) -> Settling:
    args, plan = trainer.args, trainer.setup.plan
    attention = attention_of(plan, trainer.setup.plugins)

    def images(backend: AttentionBackend | None, layout: Any) -> None:
        trainer.shared_rows.prove_images(trainer.model, backend, layout, trainer.layouts, trainer.train_dataset)

    def agree(fault: str) -> str:
        return next(filter(None, gather_object([fault])), "") if args.world_size > 1 else fault

    return Settling(
        model=trainer.model,
        plan=plan,
        backend=attention[1] if attention else None,
        layouts=trainer.layouts,
        shared=trainer.shared_rows,
        packed=trainer.packed,
        device=args.device.type,
        dtype=running_dtype(causal_model(trainer.loaded.model), args),
        max_length=trainer.data.max_length,
        images=images,
        agree=agree,
        by_row=next((name for name in TAKE_BATCHES if name in vars(trainer)), ""),
    )
