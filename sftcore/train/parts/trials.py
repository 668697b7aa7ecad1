"""The trials of a run's plugins, before its first step: what each claims, tried on this model and these rows.

`sftcore.trials` says what is tried of each kind. A trial that was passed is kept in the cache folder, and not made
again until the plugin, the model's class or dtype, the device or a library changes; a collator is tried on the rows of
each run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from accelerate.utils import gather_object
from attrs import define, field

from sftcore.core.door import located
from sftcore.core.errors import BrokenPluginError, DataError, SFTCoreError, said_by
from sftcore.core.types import IGNORED
from sftcore.documents.layouts import layout_of, pads_left
from sftcore.documents.proof import evaluation_mode, ordinary_token_ids
from sftcore.model.attention import replaced_attention
from sftcore.model.build import attention_of
from sftcore.model.products.digits import multiplies_in_tf32
from sftcore.model.unwrap import causal_model, is_peft_model
from sftcore.train.losses.own_loss import compare_own_loss
from sftcore.train.parts.loss import without_virtual_tokens
from sftcore.trials.collator import try_collator
from sftcore.trials.kept import KeptTrials
from sftcore.trials.loss import try_loss_in_model
from sftcore.trials.model import PLAIN, ModelTrial
from sftcore.trials.outcome import Outcome
from sftcore.trials.own import try_own_collator, try_own_loss
from sftcore.util.claims import refused, spelled
from sftcore.util.foreign import naming_plugins
from sftcore.util.process_state import left_as_found

if TYPE_CHECKING:
    import torch

    from sftcore.core.registry import Bound

ROWS = 8
"""The most rows that a collator is tried on."""
TOKENS = 16
"""The tokens that a loss is tried on."""


def try_plugins(trainer: Any) -> None:
    """Try the plugins of a trainer whose model is placed and wrapped; all processes call it together.

    Raises:
        BrokenPluginError: a plugin does not do what it claims, with the figure and the bound.
    """
    reason = trainer.bound_loss.reason
    notes = [f"the loss builds all logits: {reason}"] if reason else []
    error: SFTCoreError | None = None
    try:
        notes += compare_own_loss(trainer)
        notes += RunTrials(trainer)()
    except SFTCoreError as found:
        error = found
    if trainer.args.world_size > 1:
        faults = [text for text in gather_object([str(error) if error else ""]) if text]
        error = error or (BrokenPluginError(f"another process finds: {faults[0]}") if faults else None)
    if error is not None:
        raise error
    trainer.loaded = attrs.evolve(trainer.loaded, notes=(*trainer.loaded.notes, *notes))


@define
class RunTrials:
    """The trials of one run; called, it gives what the run has to say of them."""

    trainer: Any
    _on_model: ModelTrial | None = field(default=None, init=False)
    _kept: KeptTrials | None = field(default=None, init=False)
    rows: list[dict[str, Any]] = field(init=False)
    weighted: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.rows = first_rows(self.trainer)
        self.weighted = has_weights(self.trainer, self.rows)

    def __call__(self) -> Iterator[str]:
        trainer = self.trainer
        plugins = trainer.setup.plugins
        # all processes take part in a pass of a model that is sharded, so that nothing may be refused before it in one
        if self.sharded:
            yield from self._losses()
        for one in plugins.answers("make_collator"):
            yield from self._said(one, self._collator(one))
        with trainer.noise.paused(), trainer.kernels.paused():
            waiting = [*self._of_model()]
            if waiting and self.sharded:
                names = ", ".join(one.selection.label for one, _ in waiting)
                yield f"not tried on the model, whose weights are sharded: {names}"
            else:
                for one, trial in waiting:
                    yield from self._said(one, self._tried(one, trial))
        if not self.sharded:  # last, since it runs with what the others do to the model
            yield from self._losses()
        yield from self._own()

    def _losses(self) -> Iterator[str]:
        if self.trainer.compute_loss_func is None and self.trainer.label_smoother is None:
            for one in self.trainer.setup.plugins.answers("make_loss"):
                yield from self._said(one, self._tried(one, self._loss, kept=not self.sharded))

    def _own(self) -> Iterator[str]:
        """What the user passed in beside plugins: a collator, and a loss function."""
        import torch

        trainer = self.trainer
        own = getattr(trainer.layouts.taken, "collator", trainer.layouts.taken)
        if (
            self.rows
            and not trainer.setup.plugins.answers("make_collator")
            and hasattr(trainer.train_dataset, "__len__")
        ):
            yield from own_said("data_collator", own, try_own_collator(trainer.layouts.taken, self.rows))
        if trainer.compute_loss_func is not None and not self.sharded:
            ids = self._ids()
            with evaluation_mode(trainer.model), torch.no_grad():
                outputs = without_virtual_tokens(trainer.model(input_ids=ids, use_cache=False), ids)
            adds_up = trainer.args.gradient_accumulation_steps * trainer.args.world_size > 1
            outcome = try_own_loss(trainer.compute_loss_func, outputs, ids, adds_up=adds_up)
            yield from own_said("compute_loss_func", trainer.compute_loss_func, outcome)

    @property
    def sharded(self) -> bool:
        """Whether a process has a part of the weights only, so that the model cannot be called by itself."""
        trainer = self.trainer
        engine = getattr(trainer.model_wrapped, "zero_optimization_partition_weights", None)
        kinds = {type(one.data).__name__ for one in trainer.model.parameters()}
        return bool(trainer.is_fsdp_enabled or (engine is not None and engine()) or "DTensor" in kinds)

    def _of_model(self) -> Iterator[tuple[Bound, Callable[[Bound], Outcome]]]:
        """What does something to the model, and its trial."""
        plugins = self.trainer.setup.plugins
        causal = causal_model(self.trainer.loaded.model)
        attention = attention_of(self.trainer.setup.plan, plugins)
        if attention is not None and not replaced_attention(causal):
            taken = causal.config.get_text_config()._attn_implementation
            can_change = getattr(type(causal), "_can_set_attn_implementation", lambda: False)()
            if can_change and taken == attention[1].implementation and taken not in PLAIN:
                exact = attention[1].exact
                for one in plugins.answers("attention_backend"):
                    yield one, lambda one: self.trial.attention(exact=exact)
        for one in plugins.answers("wrap_model"):
            yield one, lambda one: self.trial.adapter(saves=one.implements("save_model"))
        for one in plugins.answers("patch_kernels"):
            yield one, lambda one: self.trial.kernel(lambda: self.trainer.kernels.patch(one))
        for one in plugins.answers("inject_noise"):
            yield one, lambda one: self.trial.noise(lambda: self.trainer.noise.inject(one))

    @property
    def trial(self) -> ModelTrial:
        """The model with its documents laid out as in the run."""
        if self._on_model is None:
            trainer = self.trainer
            layout = layout_of(trainer.layouts.taken, packed=trainer.packed)
            proof = trainer.shared_rows.proof
            way = proof.way if proof is not None and layout.shared else None
            autocast = "bfloat16" if trainer.args.bf16 else "float16" if trainer.args.fp16 else None
            self._on_model = ModelTrial(
                trainer.loaded.model,
                way,
                layout.flattened,
                autocast,
                trainer.data.max_length,
                left=pads_left(trainer.layouts.taken),
            )
        return self._on_model

    @property
    def kept(self) -> KeptTrials:
        """The trials passed before by a run like this one."""
        if self._kept is None:
            self._kept = KeptTrials({**facts_of_run(self.trainer, self.trial), "weights": self.weighted})
        return self._kept

    def _tried(self, one: Bound, trial: Callable[[Bound], Outcome], *, kept: bool = True) -> Outcome:
        known = self.kept.passed(one) if kept else None
        if known is not None:
            return known
        outcome = self._called(one, "on the model", lambda: trial(one))
        if kept:
            self.kept.keep(one, outcome)
        return outcome

    def _called(self, one: Bound, where: str, call: Callable[[], Outcome]) -> Outcome:
        """The outcome of a trial, in which the plugin may raise anything; our own errors say what is wrong themselves.

        Raises:
            BrokenPluginError: it raised an error, which is named with the plugin.
        """
        try:
            with naming_plugins(self.trainer.setup.plugins.bound), left_as_found(f"{spelled(one)} in its trial"):
                return call()
        except SFTCoreError:
            raise
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":  # which is nobody's fault
                raise
            raise refused(one, f"{where} it raises {said_by(error)}") from error

    def _said(self, one: Bound, outcome: Outcome) -> Iterator[str]:
        """Raise what is wrong, and give what is to be said."""
        if outcome.fault:
            raise refused(one, outcome.fault, outcome.fix)
        for note in outcome.notes:
            yield f"{spelled(one)}: {note}"

    # --- Collator and loss --------------------------------------------------------------------------------------------
    def _collator(self, one: Bound) -> Outcome:
        trainer = self.trainer
        rows = self.rows
        if not rows:
            return Outcome()
        if self.weighted and all(row.get("weights") is None for row in rows):
            rows = [{**row, "weights": np.linspace(0.5, 1, len(row["input_ids"])).tolist()} for row in rows]
        attention = str(causal_model(trainer.loaded.model).config.get_text_config()._attn_implementation)
        where = f"on the first {len(rows)} rows"
        return self._called(one, where, lambda: try_collator(trainer.layouts.taken, rows, attention))

    def _loss(self, one: Bound) -> Outcome:
        trainer, ids = self.trainer, self._ids()
        with evaluation_mode(trainer.model):
            return try_loss_in_model(
                trainer.bound_loss.loss,
                trainer.model,
                causal_model(trainer.loaded.model),
                ids,
                gathers=trainer.bound_loss.gathers,
                weighted=self.weighted,
                gradients=not self.sharded,
            )

    def _ids(self) -> torch.Tensor:
        """Ordinary tokens that a loss is tried on: (1, T) int64."""
        import torch

        trainer = self.trainer
        known = torch.tensor(ordinary_token_ids(causal_model(trainer.loaded.model).config))
        tokens = min(TOKENS, trainer.data.max_length or TOKENS)  # a model may have few positions
        generator = torch.Generator().manual_seed(3)
        return known[torch.randint(len(known), (1, tokens), generator=generator)].to(trainer.args.device)


def own_said(what: str, function: Any, outcome: Outcome) -> Iterator[str]:
    """Raise what is wrong with something of the user's, or give what is to be said; both name its file and line.

    Raises:
        DataError: it is nothing that a run can train on.
    """
    at = located(function)
    named = f"{what} ({at})" if at else what
    if outcome.fault:
        raise DataError(f"{named} {outcome.fault}.", fix=outcome.fix)
    for note in outcome.notes:
        yield f"{named} {note}"


def first_rows(trainer: Any) -> list[dict[str, Any]]:
    """The first rows as a collator is given them, as many as a batch has, made up for a stream; none without tokens."""
    args = trainer.args
    dataset, size = trainer.train_dataset, args.per_device_train_batch_size
    if dataset is None:
        dataset, size = trainer.eval_dataset, args.per_device_eval_batch_size
        dataset = next(iter(dataset.values()), None) if isinstance(dataset, Mapping) else dataset
    if dataset is None:
        return []
    if not hasattr(dataset, "__len__"):  # a stream, each row of which is prepared once, when its turn comes
        return made_rows(trainer)
    columns = trainer.columns_for_collator()
    found = [dataset[place] for place in range(min(size, ROWS, len(dataset)))]
    kept = not args.remove_unused_columns
    rows = [{name: row[name] for name in (row if kept else columns) if name in row} for row in found if _is_row(row)]
    return rows if all("input_ids" in row for row in rows) else []


def _is_row(row: Any) -> bool:
    return isinstance(row, Mapping)


def made_rows(trainer: Any) -> list[dict[str, Any]]:
    """Rows as they are prepared, half of them a prompt; of two documents each in a packed run."""
    known = ordinary_token_ids(causal_model(trainer.loaded.model).config)
    count = min(trainer.args.per_device_train_batch_size, ROWS)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        length = 6 + 2 * (number % 3)
        ids = [known[(7 * number + 3 * place) % len(known)] for place in range(length)]
        row: dict[str, Any] = {"input_ids": ids, "labels": [IGNORED] * (length // 2) + ids[length // 2 :]}
        if trainer.packed:
            row["seq_lengths"] = [length - 2, 2]
            row["labels"][length - 2] = IGNORED
        rows.append(row)
    return rows


def has_weights(trainer: Any, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether tokens of the run may have weights; of a stream this is known by its columns alone."""
    given = trainer.eval_dataset
    sets = [trainer.train_dataset, *(given.values() if isinstance(given, Mapping) else [given])]
    if any("weights" in (getattr(one, "column_names", None) or ()) for one in sets):
        return True
    return any(row.get("weights") is not None for row in rows)


def facts_of_run(trainer: Any, trial: ModelTrial) -> dict[str, Any]:
    """What the outcome of a trial depends on beside the plugin, as JSON values."""
    import torch

    model = trainer.loaded.model
    causal = causal_model(model)
    config = causal.config.to_dict()
    device = trainer.args.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    trained = sorted({_kind(name, one) for name, one in model.named_parameters() if one.requires_grad})
    frozen = sorted({str(one.dtype) for one in model.parameters() if not one.requires_grad})
    return {
        "model": f"{type(causal).__module__}.{type(causal).__qualname__}",
        "adapted": is_peft_model(model),
        "config": {key: value for key, value in config.items() if key not in _NOT_OF_THE_MODEL},
        "trained": trained,
        "frozen": frozen,
        "autocast": trial.autocast,
        "device": name,
        "tf32": multiplies_in_tf32(),
        "attention": causal.config.get_text_config()._attn_implementation,
        "way": [getattr(trial.way, "name", ""), trial.flattened, trial.left],
        "head": trainer.bound_loss.reason,
    }


_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "use_cache")


def _kind(name: str, parameter: torch.Tensor) -> str:
    return "".join("#" if letter.isdigit() else letter for letter in name) + f" {parameter.dtype}"
