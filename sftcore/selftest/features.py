"""The features of a run, put on one at a time and measured against the plain path: the lines of `sftcore selftest`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from attrs import define, field

from sftcore.core.errors import ConflictError, SFTCoreError
from sftcore.documents.proof import FAILURES
from sftcore.selftest.bench import (
    Bench,
    Step,
    blocks,
    checkpoints,
    flattened,
    padded,
    run_batches,
)
from sftcore.selftest.equivalence import (
    OWN_LOSS,
    Line,
    Measured,
    Row,
    at_once,
    attention,
    chunked,
    cross_entropy,
    digest,
    gap_between,
    judged,
    num_items,
    plain,
    plain_of_its_own,
    said_of,
    value_at_once,
)

if TYPE_CHECKING:
    from sftcore.core.registry import Bound
    from sftcore.core.types import AttentionBackend, LossFunction
    from sftcore.train.checked import Checked

CHUNKS = (17, 1_000_000)
"""Sizes of the loss's chunks: one that divides nothing, and one that holds all."""
PLAIN_ATTENTION = "eager"
"""The attention of the plain path: scores, softmax and products, written out."""


@define
class Features:
    """Measures a run's features on its model and rows.

    `wanted` is the plain path, `spelled` says how it was computed; `reference` sets them, before `lines` is asked.
    """

    checked: Checked
    bench: Bench
    rows: Sequence[Row]
    tolerance: float
    autocast: str | None
    wanted: Measured = field(init=False)
    spelled: str = ""
    notes: list[str] = field(factory=list)

    @property
    def model(self) -> Any:
        return self.bench.trainer.model

    # --- The plain path -------------------------------------------------------------------------------------------
    def reference(self) -> None:
        """The plain path's loss and gradients; those of the loss itself where it means something else."""
        import torch

        loss = self._loss(self._of_kind("loss")[0])
        self.model.train()
        with self._plain_attention() as said, self.bench.trainer.accelerator.autocast():
            with torch.no_grad():
                nll = float(at_once(self.model, self.rows, cross_entropy))
                own = value_at_once(self.model, self.rows, loss)
            another = own is not None and not abs(own - nll) <= max(OWN_LOSS, self.tolerance) * abs(nll)
        self.wanted = (
            self._plainly(lambda: plain_of_its_own(self.model, self.rows, loss)) if another else self.cross_entropy()
        )
        computed = "the loss on all logits at once" if another else "cross-entropy of all logits"
        self.spelled = f"each row alone, {said}, {computed}"
        if another:
            name = self._of_kind("loss")[0].selection.label
            self.notes.append(
                f"{name} gives {own:.4g} where cross-entropy is {nll:.4g}: a loss of its own, so it is compared with "
                "itself on all logits at once"
            )
        if self.bench.woken:
            self.notes.append("what trains and is zero got small random numbers, as zeros would hide gradients")
        if getattr(self.model.config.get_text_config(), "output_router_logits", False):
            self.notes.append("the auxiliary loss of its experts is left out: it depends on which rows share a batch")

    def cross_entropy(self) -> Measured:
        """The plain path's, whatever the run's loss is."""
        return self._plainly(lambda: plain(self.model, self.rows))

    def _plainly(self, measure: Callable[[], Measured]) -> Measured:
        self.model.train()
        with self._plain_attention(), self.bench.trainer.accelerator.autocast():
            return measure()

    @contextlib.contextmanager
    def _plain_attention(self) -> Iterator[str]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(attention(self.model, PLAIN_ATTENTION))
                said = f"{PLAIN_ATTENTION} attention"
            except (ValueError, KeyError, ImportError, AttributeError):
                said = "the model's own attention"
            yield said

    # --- The features ---------------------------------------------------------------------------------------------
    def lines(self) -> Iterator[Line]:
        """A line for each feature."""
        one_by_one, together = [padded([row]) for row in self.rows], [padded(self.rows)]
        many = len(self.rows)
        yield from self._loader()
        yield self._compared(f"{many} batches of 1 row, accumulated", Step(one_by_one))
        yield self._compared(f"1 batch of {many} rows, padded", Step(together))
        yield from self._chunks(together)
        yield from self._checkpointing(together)
        yield from self._offloading(together)
        yield self._shared("padding-free: rows end to end", [flattened(self.rows)], flat=True)
        yield self._shared("packed: several rows in a block", [padded(blocks(self.rows))], flat=False)
        yield from self._collator()
        yield from self._attention()
        yield from self._kernels(together)
        yield self._noise(together)
        yield self._whole()

    def _loader(self) -> Iterator[Line]:
        """A loader that replaces more than it loads leaves no plain path in this process, so it is run in another."""
        from sftcore.selftest.plain_process import plain_elsewhere

        claims = self.checked.setup.plugins.all("claims")
        for one, slots in claims:
            replaced = [slot for slot in slots if slot != "model.load"] if one.entry.kind == "loader" else []
            if not replaced:
                continue
            what = f"{one.selection.label} against transformers alone"
            self.notes.append(
                f"{one.selection.label} replaces {', '.join(replaced)} as it loads the model: the first line compares "
                "it with transformers in a process of its own, the others with what it put there"
            )
            try:
                request = self.checked.setup.plan.model
                alone = plain_elsewhere(self.model, request, self.rows, PLAIN_ATTENTION, self.autocast)
            except SFTCoreError as error:
                yield Line(what, "not applicable", why=error.what)
            else:
                yield judged(what, gap_between(self.cross_entropy(), alone), self.tolerance)

    def _compared(self, what: str, step: Step) -> Line:
        return self._tried(what, lambda: step)

    def _tried(self, what: str, make: Callable[[], Step]) -> Line:
        """The line of a step, which fails too where it cannot be made or computed."""
        try:
            gap = gap_between(self.bench.measure(make()), self.wanted)
        except FAILURES as error:
            if type(error).__name__ == "OutOfMemoryError":
                raise
            return Line(what, "FAILED", why=said_of(error))
        return judged(what, gap, self.tolerance)

    def _chunks(self, together: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
        from sftcore.model.bound_loss import BoundLoss

        bound, trainer = self._of_kind("loss")[0], self.bench.trainer
        own, counted = trainer.bound_loss, int(num_items(self.rows))
        for chunk in CHUNKS:
            size = f"{chunk} positions" if chunk < counted else "all positions"
            plugin = chunked(bound.plugin, chunk)
            if plugin is None:
                yield Line("loss in chunks", "not applicable", why=f"{bound.selection.label} has no chunks")
                return
            trainer.bound_loss = BoundLoss(self._loss(attrs.evolve(bound, plugin=plugin)), own.reason)
            try:
                yield self._compared(f"loss in chunks of {size}", Step(together))
            finally:
                trainer.bound_loss = own

    def _checkpointing(self, together: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
        from sftcore.config.checks import KEPT

        if not getattr(self.model, "supports_gradient_checkpointing", True):
            why = f"{type(self.model).__name__} has none"
            yield Line("gradient checkpointing", "not applicable", why=why)
            return
        for kept in (None, *KEPT):
            what = "gradient checkpointing" if kept is None else f"gradient checkpointing that keeps {kept}"
            with self.bench.checkpointing(kept):
                yield self._compared(what, Step(together))

    def _offloading(self, together: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
        """Activations in host memory, where the run asks for it; on a CPU it is refused, as training refuses it."""
        from sftcore.config.checks import ON_CPU
        from sftcore.model.memory.offload import ActivationOffloading

        trainer = self.bench.trainer
        if not self.checked.setup.plan.settings.get("activation_offloading"):
            return
        if trainer.args.device.type == "cpu":
            raise ConflictError(ON_CPU, where="activation_offloading", fix="Set activation_offloading: false.")
        trainer.offloading = ActivationOffloading(trainer.model, trainer.args.device)
        try:
            yield self._compared("activation offloading", Step(together))
        finally:
            trainer.offloading = None

    def _shared(
        self,
        what: str,
        batches: Sequence[Mapping[str, Any]],
        *,
        flat: bool,
        backend: AttentionBackend | None = None,
        needed: bool = False,
    ) -> Line:
        """Rows that share a row. Where the run needs none of it, a model that cannot do it is no failure."""
        from sftcore.documents.proof import keep_documents_apart
        from sftcore.documents.shared_rows import SharedRows

        settings = self.checked.setup.plan.settings
        asked = needed or bool(settings.get("packing") or settings.get("padding_free"))
        trainer = self.bench.trainer
        try:
            with trainer.accelerator.autocast():
                proof = keep_documents_apart(self.model, backend, flattened=flat)
        except SFTCoreError as error:
            return Line(what, "FAILED" if asked else "not applicable", why=error.what)
        return self._compared(what, Step(batches, SharedRows(proof)))

    def _collator(self) -> Iterator[Line]:
        """A collator that was chosen, under the model's default attention."""
        for one in self._of_kind("collator"):
            if not one.selection.default:
                yield self._tried(one.selection.label, lambda: self._batches(None))

    def _batches(self, backend: AttentionBackend | None) -> Step:
        """The run's own batches, packed where it packs; `backend` is the attention that is on."""
        plan, plugins = self.checked.setup.plan, self.checked.setup.plugins
        collator = plugins.one("make_collator", processor=self.bench.trainer.processing_class, plan=plan)
        return Step(*run_batches(collator, self.rows, plan.settings, lambda layout: self._prove(layout, backend)))

    def _attention(self) -> Iterator[Line]:
        from sftcore.model.build import attention_of, refuse_unsupported

        setup, trainer = self.checked.setup, self.bench.trainer
        found = attention_of(setup.plan, setup.plugins)
        if found is None or found[0].default:
            return
        selection, backend = found
        dtype = self.autocast or str(self.model.dtype).removeprefix("torch.")
        refuse_unsupported(setup.plan, setup.plugins, self.model, dtype, trainer.args.device.type)
        with attention(self.model, backend.implementation):
            if backend.padding:
                yield self._compared(f"{selection.label}, padded rows", Step([padded(self.rows)]))
            else:
                yield Line(f"{selection.label}, padded rows", "not applicable", why="it takes no padding")
            flat, packed = [flattened(self.rows)], [padded(blocks(self.rows))]
            yield self._shared(f"{selection.label}, rows end to end", flat, flat=True, backend=backend, needed=True)
            yield self._shared(f"{selection.label}, packed rows", packed, flat=False, backend=backend, needed=True)

    def _kernels(self, together: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
        labels = [one.selection.label for one in self._of_kind("kernel")]
        if not labels:
            return
        with self._kernels_on() as said:
            if all("replaced nothing" in note for note in said):
                yield Line(" and ".join(labels), "not applicable", why="; ".join(said))
                return
            self.notes += said
            yield self._compared(" and ".join(labels), Step(together))

    @contextlib.contextmanager
    def _kernels_on(self) -> Iterator[tuple[str, ...]]:
        from sftcore.model.kernels import Kernels
        from sftcore.model.unwrap import causal_model

        kernels = Kernels(self.checked.setup.plugins, self.checked.setup.plan)
        loaded = attrs.evolve(self.bench.trainer.loaded, model=causal_model(self.model))
        try:
            yield kernels.on(loaded)
        finally:
            kernels.off()

    def _noise(self, together: Sequence[Mapping[str, Any]]) -> Line:
        """Noise moves the loss of training; evaluation, weights and what comes afterwards know nothing of it."""
        chosen = self._of_kind("noise")
        if not chosen:
            return Line("noise", "not applicable", why="the run has none")
        what = f"{chosen[0].selection.label}, on and off again"
        trainer = self.bench.trainer
        before, weights = self.bench.measure(Step(together)), digest(self.model)
        trainer.noise.on()
        try:
            noisy = self.bench.measure(Step(together))
            trainer.model.eval()
            evaluated = self._evaluated(together)
        finally:
            trainer.noise.off()
        gap = gap_between(self.bench.measure(Step(together)), before)
        faults = []
        if noisy.loss == before.loss:
            faults.append("training has the same loss with it")
        if evaluated != self._evaluated(together):
            faults.append("it is on in evaluation")
        if digest(self.model) != weights:
            faults.append("the weights are not what they were")
        moved = f"it moves the loss by {abs(noisy.loss - before.loss) / abs(before.loss):.2g}; the weights are the same"
        line = judged(what, gap, 0.0, "; ".join(faults) or moved)
        return line if not faults else Line(what, "FAILED", gap, 0.0, line.why)

    def _evaluated(self, batches: Sequence[Mapping[str, Any]]) -> float:
        import torch

        self.model.eval()
        with torch.no_grad(), self.bench.trainer.compute_loss_context_manager():
            inputs = self.bench.trainer.to_device(dict(batches[0]))
            return float(self.bench.trainer.compute_loss(self.model, inputs))

    # --- All of it --------------------------------------------------------------------------------------------------
    def _whole(self) -> Line:
        """The run's own collator, attention, kernels, packing and checkpointing at once."""
        with contextlib.ExitStack() as stack:
            return self._tried("the run: all of its features at once", lambda: self._run_step(stack))

    def _run_step(self, stack: contextlib.ExitStack) -> Step:
        backend = self._run_attention(stack)
        stack.enter_context(self._kernels_on())
        if checkpoints(self.checked.setup.plan.settings):
            stack.enter_context(self._run_checkpointing())
        return self._batches(backend)

    def _run_attention(self, stack: contextlib.ExitStack) -> AttentionBackend | None:
        from sftcore.model.build import attention_of

        found = attention_of(self.checked.setup.plan, self.checked.setup.plugins)
        if found is not None and not found[0].default:
            stack.enter_context(attention(self.model, found[1].implementation))
        return found[1] if found else None

    def _run_checkpointing(self) -> contextlib.AbstractContextManager[None]:
        settings = self.checked.setup.plan.settings
        options = dict(settings.get("gradient_checkpointing_kwargs") or {})
        selective = options.pop("selective", None)
        return self.bench.checkpointing("attention" if selective is True else selective or None, **options)

    def _prove(self, layout: Any, backend: AttentionBackend | None) -> Any:
        from sftcore.documents.shared_rows import SharedRows

        shared = SharedRows()
        with self.bench.trainer.accelerator.autocast():
            shared.prove(self.model, backend, layout)
        return shared

    # --- Plugins ----------------------------------------------------------------------------------------------------
    def _of_kind(self, kind: str) -> list[Bound]:
        return [one for one in self.checked.setup.plugins.bound if one.entry.kind == kind]

    def _loss(self, bound: Bound) -> LossFunction:
        plugins = self.checked.setup.plugins.having(bound)
        found: LossFunction = plugins.one("make_loss", loaded=self.bench.trainer.loaded, plan=self.checked.setup.plan)
        return found
