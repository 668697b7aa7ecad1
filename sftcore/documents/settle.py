"""Settles, at a run's first `train` or `evaluate`, what it left open: its attention, and how rows are laid out.

What the plan expects is tried on the model that trains, placed and wrapped as it trains. What fails makes room for the
next, and the run says so:

1. The model takes the attention, and its logits are those that the model has with its own, within the tolerance of
   the dtype.
2. Documents that share a row are proven to be kept apart, see `sftcore.documents.proof`; where nobody asked for a
   layout, by the boundaries that the attention is given and in no other way, which would cost more than padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from sftcore.config.attention import shortcomings, speed_on
from sftcore.core.errors import ModelError
from sftcore.core.types import AttentionBackend, Plan, Selection
from sftcore.documents.layouts import Layout, RowLayouts, layout_of
from sftcore.documents.proof import (
    FAILURES,
    LONGEST_WINDOW,
    TF32_TOLERANCE,
    TOLERANCES,
    WINDOWS,
    coarsest,
    evaluation_mode,
    logits_of,
    ordinary_token_ids,
)
from sftcore.documents.shared_rows import SharedRows
from sftcore.documents.ways import Way, ways_for
from sftcore.model.unwrap import causal_model

if TYPE_CHECKING:
    import torch


@frozen
class Attempt:
    """An attention and a layout. `selection` is a candidate of `attention: auto`, None for an attention that stays."""

    selection: Selection | None
    backend: AttentionBackend | None
    flattened: bool

    @property
    def name(self) -> str:
        attention = self.selection.name if self.selection else "it"
        return f"{attention} with rows {'end to end' if self.flattened else 'side by side'}"


@frozen
class Settled:
    """What the run takes; `notes` say what it is, and why what was expected is not."""

    attempt: Attempt
    layout: Layout
    notes: tuple[str, ...]


@define
class Settling:
    """The model of a run with what is needed to try an attention and a layout on it.

    Args:
        model: as training calls it, wrapped.
        plan: with what it leaves open.
        backend: what the attention declares that was chosen, or that a ready model has.
        layouts: the run's collators.
        shared: is given the proof.
        packed: whether rows are packed.
        device, dtype: where and in what the model computes ("cuda", "bfloat16").
        max_length: of the run's longest document.
        images: holds the proof on rows with images; raises ModelError.
        agree: from this process's fault to the first fault of all processes, which then do the same.
        by_row: what reads batches row by row, as the plan could not know; it keeps an open layout padded.
    """

    model: Any
    plan: Plan
    backend: AttentionBackend | None
    layouts: RowLayouts
    shared: SharedRows
    packed: bool
    device: str
    dtype: str
    max_length: int | None
    images: Callable[[AttentionBackend | None, Layout], None]
    agree: Callable[[str], str]
    by_row: str = ""
    _own: str = field(init=False)
    _wanted: list[torch.Tensor] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self._own = causal_model(self.model).config._attn_implementation

    def __call__(self) -> Settled:
        """Take the first attempt without a fault.

        Raises:
            ModelError: documents share rows because that was asked for, and nothing keeps them apart.
        """
        attempts, faults = list(self._attempts()), dict[str, str]()
        if len(attempts) == 1 and attempts[0].selection is None:
            self._prove(attempts[0])
            return self._settled(attempts[0], {})
        last: ModelError | None = None
        for attempt in attempts:
            fault = ""
            try:
                self._try(attempt)
            except FAILURES as error:
                if type(error).__name__ == "OutOfMemoryError":
                    raise
                last = error if isinstance(error, ModelError) else last
                fault = _first_line(error)
            if not (fault := self.agree(fault)):
                return self._settled(attempt, faults)
            faults[attempt.name] = fault
        self._give(self._own)
        self.layouts.flattened = self.layouts.flattened and not self.plan.open_layout
        if self._layout().shared:
            raise last or ModelError(f"another process finds a fault: {fault}.")
        return self._settled(Attempt(None, None, flattened=self.layouts.flattened), faults)

    def take_expected(self) -> Attempt:
        """Take what `__call__` does if it finds no fault, without a forward pass: for a model that has no weights."""
        attempt = next((one for one in self._attempts() if not self._shortcomings(one)), Attempt(None, None, False))
        if attempt.selection is not None and attempt.backend is not None:
            if attempt.backend.register is not None:
                attempt.backend.register()
            self._give(attempt.backend.implementation)
        self.layouts.flattened = attempt.flattened
        if self._layout().shared:
            self.shared.assume((self._ways(attempt) or ways_for(self.model, attempt.backend))[0])
        return attempt

    def _attempts(self) -> Iterator[Attempt]:
        found: Sequence[tuple[Selection | None, AttentionBackend | None]]
        found = self.plan.candidates or ((None, self.backend),)
        if self.plan.open_layout:
            if not self.by_row:
                yield from (Attempt(one, backend, True) for one, backend in found if backend and backend.boundaries)
            speeds = [(speed_on(each, self.device, shared=False), one, each) for one, each in found if each]
            for speed, one, each in sorted(speeds, key=lambda known: -known[0]):
                if speed or one is None:
                    yield Attempt(one, each, False)
            return
        for one, backend in found:
            boundaries = backend is not None and backend.boundaries
            yield Attempt(one, backend, boundaries if self.layouts.are_open else self.layouts.flattened)

    def _try(self, attempt: Attempt) -> None:
        """Raise one of FAILURES where this attention or layout is not for this model."""
        if attempt.selection is None or attempt.backend is None:
            self._prove(attempt)
            return
        for what in self._shortcomings(attempt):
            raise ModelError(f"it {what}")
        padded = not attempt.flattened and not self.packed
        implementation = attempt.backend.implementation
        if implementation != self._own and not self._wanted:
            self._give(self._own)
            self._wanted = self._logits(padded=False)
        if attempt.backend.register is not None:
            attempt.backend.register()
        self._give(implementation)
        self._prove(attempt)
        if implementation != self._own:
            self._compare(self._logits(padded=padded))

    def _shortcomings(self, attempt: Attempt) -> list[str]:
        """What a candidate declares that it cannot do, and the run needs."""
        if attempt.selection is None or attempt.backend is None:
            return []
        config = causal_model(self.model).config.get_text_config().to_dict()
        padded = not attempt.flattened and not self.packed
        return [what for what, _ in shortcomings(attempt.backend, self.device, self.dtype, config, padded=padded)]

    def _ways(self, attempt: Attempt) -> list[Way] | None:
        """The ways to try where the run chooses; None: all."""
        auto = attempt.selection is not None or self.plan.open_layout
        if auto and attempt.backend is not None and attempt.backend.boundaries:
            return [way for way in ways_for(self.model, attempt.backend) if way.name == "boundaries"]
        return None

    def _prove(self, attempt: Attempt) -> None:
        self.layouts.flattened = attempt.flattened
        self.shared.proof = None
        layout, ways = self._layout(), self._ways(attempt)
        if self.packed and self.layouts.are_open and attempt.flattened:
            # blocks whose logits are handed to the user are side by side
            side_by_side = Layout(shared=True, flattened=False)
            self.shared.prove(self.model, attempt.backend, side_by_side, max_length=self.max_length, ways=ways)
        self.shared.prove(self.model, attempt.backend, layout, max_length=self.max_length, ways=ways)
        self.images(attempt.backend, layout)

    def _layout(self) -> Layout:
        return layout_of(self.layouts.taken, packed=self.packed)

    def _settled(self, attempt: Attempt, faults: Mapping[str, str]) -> Settled:
        notes, reasons = [], self.plan.reasons
        why_not = "; ".join(f"{name}: {fault.partition('. ')[0]}" for name, fault in faults.items())
        taken = attempt.selection.name if attempt.selection else causal_model(self.model).config._attn_implementation
        if self.plan.candidates:
            said = f", as others failed: {why_not}" if faults else f": {reasons.get('attention', '')}"
            notes.append(f"attention {taken}{said}")
        if self.plan.open_layout and not attempt.flattened:
            why = f"{self.by_row} reads them row by row" if self.by_row else "" if self.plan.candidates else why_not
            notes.append(f"rows are padded: {why}" if why else "rows are padded")
        elif self.plan.open_layout:
            notes.append("rows end to end, without padding")
        elif "collator" in reasons:
            notes.append(reasons["collator"])
        return Settled(attempt, self._layout(), tuple(notes))

    # --- The model with another attention ---------------------------------------------------------------------------
    def _give(self, implementation: str) -> None:
        """Have the model use this attention.

        Raises:
            ModelError: it stays with another.
        """
        model = causal_model(self.model)
        try:
            model.set_attn_implementation(implementation)
        except (ValueError, KeyError, ImportError) as error:
            raise ModelError(_first_line(error)) from error
        taken = model.config._attn_implementation
        if taken != implementation:
            raise ModelError(f"{type(model).__name__} stays with {taken}")

    def _logits(self, *, padded: bool) -> list[torch.Tensor]:
        """The logits of a short and of a long document, (T, V) each: alone in a row, or both in a padded batch."""
        import torch

        model = causal_model(self.model)
        device = self.model.get_input_embeddings().weight.device
        known = torch.tensor(ordinary_token_ids(model.config))
        lengths = 5, _longest(model.config.get_text_config(), self.max_length)
        choice_BT = torch.randint(len(known), (2, lengths[1]), generator=torch.Generator().manual_seed(1))
        ids_BT = known[choice_BT].to(device)
        with evaluation_mode(self.model), torch.no_grad():
            if not padded:
                rows = [ids_BT[row : row + 1, :length] for row, length in enumerate(lengths)]
                return [logits_of(self.model, {"input_ids": row_BT})[0] for row_BT in rows]
            mask_BT = torch.ones_like(ids_BT)
            mask_BT[0, lengths[0] :] = 0
            found = logits_of(self.model, {"input_ids": ids_BT, "attention_mask": mask_BT})
            return [found[row, :length] for row, length in enumerate(lengths)]

    def _compare(self, found: list[torch.Tensor]) -> None:
        """Refuse an attention with which the model computes something else than with its own.

        Raises:
            ModelError: with how far the logits differ.
        """
        coarse = coarsest(self.model, found[0])
        tf32 = coarse == "float32" and found[0].device.type != "cpu"
        largest = max(float(one.abs().max()) for one in self._wanted)
        allowed = (TF32_TOLERANCE if tf32 else TOLERANCES[coarse]) * largest
        pairs = zip(found, self._wanted, strict=True)
        gap = max(float((one.float() - other.float()).abs().max()) for one, other in pairs)
        if not gap <= allowed:
            raise ModelError(f"logits differ by {gap:.2g} from those with {self._own} (allowed: {allowed:.2g})")


def _longest(config: Any, max_length: int | None) -> int:
    """More tokens than the model's sliding window has, where rows can be so long."""
    limit = min(length for length in (max_length, getattr(config, "max_position_embeddings", None), 1 << 30) if length)
    windows = [getattr(config, name, None) for name in WINDOWS]
    reached = [one + 5 for one in windows if isinstance(one, int) and one < min(limit, LONGEST_WINDOW)]
    return max(6, min(limit, max([24, *reached])))


def _first_line(error: Exception) -> str:
    text = error.what if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
    return text.strip().partition("\n")[0].rstrip(".")
