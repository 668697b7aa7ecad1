"""Switch on the features of a run one at a time, and compare each with the reference: the lines of the self-test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from attrs import define, field

from sftcore.core.errors import BrokenPluginError, ConflictError, SFTCoreError
from sftcore.documents.proof import FAILURES
from sftcore.selftest.equivalence import (
    OWN_LOSS,
    Line,
    Row,
    first_line_of,
    judge,
    measure_reference,
    measure_with_loss,
    num_items,
)
from sftcore.selftest.trainers import (
    Step,
    blocks,
    checkpointing,
    checkpoints,
    measure_step,
    padded,
    run_batches,
)
from sftcore.trials.measured import Measured, gap_between, weights_hash, with_attention

if TYPE_CHECKING:
    from sftcore.config.setup import Setup
    from sftcore.core.registry import Bound
    from sftcore.core.types import AttentionBackend, LossFunction
    from sftcore.train.checked import Checked
    from sftcore.train.trainer import SFTTrainer

CHUNKS = (17, 1_000_000)
"""Chunk sizes of the loss: one that does not divide the number of positions, and one that holds them all."""
REFERENCE_ATTENTION = "eager"
"""The attention of the reference, which computes scores, softmax and products step by step."""


@define
class Features:
    """Compares a run's features with the reference, on the run's model and rows.

    `compute_reference` must be called before `lines`; it sets `reference` and `description`, which says how the
    reference was computed. `filled` says that zero parameters were filled.
    """

    checked: Checked
    trainer: SFTTrainer
    rows: Sequence[Row]
    tolerance: float
    autocast: str | None
    filled: bool
    reference: Measured = field(init=False)
    description: str = ""
    notes: list[str] = field(factory=list)

    @property
    def model(self) -> Any:
        return self.trainer.model

    # --- The reference --------------------------------------------------------------------------------------------
    def compute_reference(self) -> None:
        """Compute the reference with cross-entropy, or with the run's own loss if that is not cross-entropy."""
        bound = self._of_kind("loss")[0]
        loss = self._loss(bound)
        computed = "cross-entropy of all logits"
        with self._reference_attention() as attention_used:
            self.reference = plain = measure_reference(self.model, self.rows)
            own = measure_with_loss(self.model, self.rows, loss)
        if own is not None and not abs(own.loss - plain.loss) <= max(OWN_LOSS, self.tolerance) * abs(plain.loss):
            self.reference = own
            computed = "the loss on all logits at once"
            self.notes.append(
                f"{bound.selection.label} gives {own.loss:.4g} where cross-entropy gives {plain.loss:.4g}; it is "
                "another loss, so it is compared with itself on all logits at once"
            )
        self.description = f"each row alone, {attention_used}, {computed}"
        if self.filled:
            self.notes.append(
                "trainable parameters that are all zero were filled with small random numbers, because zeros would "
                "hide gradients"
            )
        if getattr(self.model.config.get_text_config(), "output_router_logits", False):
            self.notes.append("the experts' auxiliary loss is left out, as it depends on which rows share a batch")

    @contextlib.contextmanager
    def _reference_attention(self) -> Iterator[str]:
        """What the reference is computed in: training mode, the run's autocast and, if possible, eager attention."""
        self.model.train()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.trainer.accelerator.autocast())
            try:
                stack.enter_context(with_attention(self.model, REFERENCE_ATTENTION))
                name = f"{REFERENCE_ATTENTION} attention"
            except (ValueError, KeyError, ImportError, AttributeError):
                name = "the model's own attention"
            yield name

    # --- The features ---------------------------------------------------------------------------------------------
    def lines(self) -> Iterator[Line]:
        """One line for each feature."""
        one_by_one, one_batch = [padded([row]) for row in self.rows], [padded(self.rows)]
        many = len(self.rows)
        yield from self._loader()
        yield self._compare(f"{many} batches of 1 row, accumulated", Step(one_by_one))
        yield self._compare(f"1 batch of {many} rows, padded", Step(one_batch))
        yield from self._chunks(one_batch)
        yield from self._checkpointing(one_batch)
        yield from self._offloading(one_batch)
        yield self._shared("padding-free: rows end to end", flat=True)
        yield self._shared("packed: several rows in a block", flat=False)
        yield from self._collator()
        yield from self._attention()
        yield from self._kernels(one_batch)
        yield self._noise(one_batch)
        yield self._whole()

    def _loader(self) -> Iterator[Line]:
        """Compare in another process for a loader that also replaces classes, as the reference would use them too."""
        from sftcore.selftest.processes import measure_reference_elsewhere

        claims = self.checked.setup.plugins.all("claims")
        for one, slots in claims:
            replaced = [slot for slot in slots if slot != "model.load"] if one.entry.kind == "loader" else []
            if not replaced:
                continue
            what = f"{one.selection.label}, compared with transformers alone"
            self.notes.append(
                f"{one.selection.label} replaces {', '.join(replaced)} while it loads the model; the first line "
                "compares the loaded model with transformers in a separate process, and the other lines compare with "
                "the loaded model"
            )
            try:
                request = self.checked.setup.plan.model
                alone = measure_reference_elsewhere(self.model, request, self.rows, REFERENCE_ATTENTION, self.autocast)
            except SFTCoreError as error:
                yield Line(what, "not applicable", why=error.what)
            else:
                with self._reference_attention():
                    own = measure_reference(self.model, self.rows)
                yield judge(what, gap_between(own, alone), self.tolerance)

    def _compare(self, what: str, step: Step) -> Line:
        return self._compare_made(what, lambda: step)

    def _compare_made(self, what: str, make: Callable[[], Step]) -> Line:
        """The line for a step; it also fails if the step cannot be made or computed."""
        try:
            gap = gap_between(measure_step(self.trainer, make()), self.reference)
        except FAILURES as error:
            if type(error).__name__ == "OutOfMemoryError":
                raise
            return Line(what, "FAILED", why=first_line_of(error))
        return judge(what, gap, self.tolerance)

    def _chunks(self, one_batch: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
        from sftcore.core.plugin_class import options
        from sftcore.model.bound_loss import BoundLoss

        bound, trainer = self._of_kind("loss")[0], self.trainer
        if not any(one.name == "chunk" for one in options(type(bound.plugin))):
            yield Line("loss in chunks", "not applicable", why=f"{bound.selection.label} does not use chunks")
            return
        own, counted = trainer.bound_loss, int(num_items(self.rows))
        for chunk in CHUNKS:
            size = f"{chunk} positions" if chunk < counted else "all positions"
            plugin = attrs.evolve(bound.plugin, chunk=chunk)
            trainer.bound_loss = BoundLoss(self._loss(attrs.evolve(bound, plugin=plugin)), own.reason)
            try:
                yield self._compare(f"loss in chunks of {size}", Step(one_batch))
            finally:
                trainer.bound_loss = own

    def _checkpointing(self, one_batch: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
        from sftcore.config.checks import KEPT

        if not getattr(self.model, "supports_gradient_checkpointing", True):
            why = f"{type(self.model).__name__} does not support it"
            yield Line("gradient checkpointing", "not applicable", why=why)
            return
        for kept in (None, *KEPT):
            what = "gradient checkpointing" if kept is None else f"gradient checkpointing that keeps {kept}"
            with checkpointing(self.trainer, kept):
                yield self._compare(what, Step(one_batch))

    def _offloading(self, one_batch: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
        """Activation offloading, if the run asks for it; on a CPU it is refused, as it is in training."""
        from sftcore.config.checks import ON_CPU
        from sftcore.model.memory.offload import ActivationOffloading

        trainer = self.trainer
        if not self.checked.setup.plan.settings.get("activation_offloading"):
            return
        if trainer.args.device.type == "cpu":
            raise ConflictError(ON_CPU, where="activation_offloading", fix="Set activation_offloading: false.")
        trainer.offloading = ActivationOffloading(trainer.model, trainer.args.device)
        try:
            yield self._compare("activation offloading", Step(one_batch))
        finally:
            trainer.offloading = None

    def _shared(self, what: str, *, flat: bool, backend: AttentionBackend | None = None) -> Line:
        """Documents that share a row, with the model's attention or the one that the run chose.

        If the run does not need this, a model that cannot do it is not a failure.
        """
        from sftcore.data.collate import flatten_rows
        from sftcore.documents.proof import keep_documents_apart
        from sftcore.documents.shared_rows import SharedRows

        settings = self.checked.setup.plan.settings
        asked = backend is not None or settings.get("packing") or settings.get("padding_free")
        batch = flatten_rows(self.rows, pad_token_id=0) if flat else padded(blocks(self.rows))
        try:
            with self.trainer.accelerator.autocast():
                proof = keep_documents_apart(self.model, backend, flattened=flat)
        except SFTCoreError as error:
            return Line(what, "FAILED" if asked else "not applicable", why=error.what)
        return self._compare(what, Step([batch], SharedRows(proof)))

    def _collator(self) -> Iterator[Line]:
        """The collator that the run chose, with the model's default attention."""
        for one in self._of_kind("collator"):
            if not one.selection.default:
                yield self._compare_made(one.selection.label, lambda: self._batches(None, self.checked.setup))

    def _batches(self, backend: AttentionBackend | None, setup: Setup) -> Step:
        """The run's own batches, packed if the run packs; `backend` is the attention in use."""
        from sftcore.documents.layouts import layout_of
        from sftcore.documents.shared_rows import SharedRows

        plan, plugins = setup.plan, setup.plugins
        collator = plugins.one("make_collator", processor=self.trainer.processing_class, plan=plan)
        shared = SharedRows()
        with self.trainer.accelerator.autocast():
            shared.prove(self.model, backend, layout_of(collator, packed=bool(plan.settings.get("packing"))))
        return Step(run_batches(collator, self.rows, plan.settings), shared)

    def _attention(self) -> Iterator[Line]:
        from sftcore.model.build import attention_of, refuse_unsupported

        setup = self.checked.setup
        found = attention_of(setup.plan, setup.plugins)
        if found is None or found[0].default:
            return
        selection, backend = found
        dtype = self.autocast or str(self.model.dtype).removeprefix("torch.")
        refuse_unsupported(setup.plan, setup.plugins, self.model, dtype, self.trainer.args.device.type)
        with with_attention(self.model, backend.implementation):
            if backend.padding:
                yield self._compare(f"{selection.label}, padded rows", Step([padded(self.rows)]))
            else:
                yield Line(f"{selection.label}, padded rows", "not applicable", why="it does not support padding")
            yield self._shared(f"{selection.label}, rows end to end", flat=True, backend=backend)
            yield self._shared(f"{selection.label}, packed rows", flat=False, backend=backend)

    def _kernels(self, one_batch: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
        labels = [one.selection.label for one in self._of_kind("kernel")]
        if not labels:
            return
        try:
            with self._kernels_on() as notes:
                if all("replaced nothing" in note for note in notes):
                    yield Line(" and ".join(labels), "not applicable", why="; ".join(notes))
                    return
                self.notes += notes
                yield self._compare(" and ".join(labels), Step(one_batch))
        except BrokenPluginError as error:  # it cannot be taken off again
            yield Line(" and ".join(labels), "FAILED", why=error.what)

    @contextlib.contextmanager
    def _kernels_on(self) -> Iterator[tuple[str, ...]]:
        from sftcore.model.kernels import Kernels
        from sftcore.model.unwrap import causal_model

        kernels = Kernels(self.checked.setup.plugins, self.checked.setup.plan)
        loaded = attrs.evolve(self.trainer.loaded, model=causal_model(self.model))
        try:
            yield kernels.on(loaded)
        finally:
            kernels.off()

    def _noise(self, one_batch: Sequence[Mapping[str, Any]]) -> Line:
        """Noise must change the training loss, and while it is off neither an evaluation nor weights or gradients.

        It is switched off for an evaluation, as the trainer does it: no plugin has to look at the mode by itself.
        """
        chosen = self._of_kind("noise")
        if not chosen:
            return Line("noise", "not applicable", why="the run adds no noise")
        what = f"{chosen[0].selection.label}, switched on and off again"
        trainer, step = self.trainer, Step(one_batch)
        before, weights = measure_step(trainer, step), weights_hash(self.model)
        try:
            trainer.noise.on()
        except BrokenPluginError as error:  # something of it stays when it is removed
            return Line(what, "FAILED", why=error.what)
        try:
            noisy = measure_step(trainer, step)
            with trainer.noise.paused():
                evaluated = self._evaluated(one_batch)
        finally:
            trainer.noise.off()
        gap = gap_between(measure_step(trainer, step), before)
        faults = []
        if noisy.loss == before.loss:
            faults.append("it does not change the training loss")
        if evaluated != self._evaluated(one_batch):
            faults.append("it is active in evaluation")
        if weights_hash(self.model) != weights:
            faults.append("it changed the weights")
        if faults:
            return Line(what, "FAILED", gap, 0.0, "; ".join(faults))
        change = abs(noisy.loss - before.loss) / abs(before.loss)
        return judge(what, gap, 0.0, f"it changes the loss by {100 * change:.2g}% and leaves the weights as they were")

    def _evaluated(self, batches: Sequence[Mapping[str, Any]]) -> float:
        import torch

        self.model.eval()
        with torch.no_grad(), self.trainer.compute_loss_context_manager():
            inputs = self.trainer.to_device(dict(batches[0]))
            return float(self.trainer.compute_loss(self.model, inputs))

    # --- The whole run ----------------------------------------------------------------------------------------------
    def _whole(self) -> Line:
        """The run's own collator, attention, kernels, packing and checkpointing, all at once."""
        with contextlib.ExitStack() as stack:
            return self._compare_made("the whole run, with all features at once", lambda: self._run_step(stack))

    def _run_step(self, stack: contextlib.ExitStack) -> Step:
        from sftcore.model.build import attention_of

        setup = self._settled()
        found = attention_of(setup.plan, setup.plugins)
        backend = found[1] if found else None
        stack.enter_context(with_attention(self.model, backend.implementation if backend else None))
        stack.enter_context(self._kernels_on())
        settings = setup.plan.settings
        if checkpoints(settings):
            options = dict(settings.get("gradient_checkpointing_kwargs") or {})
            selective = options.pop("selective", None)
            kept = "attention" if selective is True else selective or None
            stack.enter_context(checkpointing(self.trainer, kept, **options))
        return self._batches(backend, setup)

    def _settled(self) -> Setup:
        """The run with the attention and layout that it would take for this model, which is left as it was."""
        from sftcore.documents.settle import Settling
        from sftcore.documents.shared_rows import SharedRows
        from sftcore.model.build import attention_of
        from sftcore.model.unwrap import causal_model
        from sftcore.train.settled import layouts_of

        setup, trainer = self.checked.setup, self.trainer
        if not setup.plan.candidates and not setup.plan.open_layout:
            return setup
        packed = bool(setup.plan.settings.get("packing"))
        attention = attention_of(setup.plan, setup.plugins)
        model = causal_model(self.model)
        before = model.config.get_text_config()._attn_implementation
        with trainer.accelerator.autocast():
            settled = Settling(
                model=self.model,
                plan=setup.plan,
                backend=attention[1] if attention else None,
                layouts=layouts_of(setup, trainer.processing_class, None, packed=packed),
                shared=SharedRows(),
                packed=packed,
                device=trainer.args.device.type,
                dtype=self.autocast or str(self.model.dtype).removeprefix("torch."),
                max_length=None,
                images=lambda backend, layout: None,
                agree=lambda fault: fault,
            )()
        model.set_attn_implementation(before)
        return setup.settled(settled.attempt.selection, flattened=settled.attempt.flattened)

    # --- Plugins ----------------------------------------------------------------------------------------------------
    def _of_kind(self, kind: str) -> list[Bound]:
        return [one for one in self.checked.setup.plugins.bound if one.entry.kind == kind]

    def _loss(self, bound: Bound) -> LossFunction:
        plugins = self.checked.setup.plugins.having(bound)
        found: LossFunction = plugins.one("make_loss", loaded=self.trainer.loaded, plan=self.checked.setup.plan)
        return found
