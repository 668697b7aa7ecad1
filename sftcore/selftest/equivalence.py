"""The reference that the self-test compares with, how a difference is measured, and how large it may be.

The reference runs each row alone through the model's own forward pass and builds all logits. The loss is their
cross-entropy in float64, summed over supervised tokens and divided by the sum of the tokens' weights.

Shapes: T tokens of a row, N supervised positions of all rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs import frozen

from sftcore.core.errors import SFTCoreError
from sftcore.core.types import IGNORED, LossFunction
from sftcore.model.precision import quantisation_of
from sftcore.model.unwrap import causal_model

if TYPE_CHECKING:
    import torch

TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Allowed relative difference of the loss, and of all gradients as one vector, for the coarsest dtype in use."""
TF32_TOLERANCE = 1e-2
"""The same for float32 on an accelerator that is set to multiply in TF32."""
EIGHT_BITS_TOLERANCE = 2e-1
"""The same for 8-bit bases, whose products are scaled by the tokens that are multiplied together."""
WORST = 10
"""How many times the tolerance one parameter may differ, since its gradient may be a small difference of large ones."""
FLOOR = 1e-3
"""A gradient smaller than this fraction of the largest one is compared with that fraction: it is mostly rounding."""
OWN_LOSS = 1e-2
"""A loss that differs from cross-entropy by more than this fraction (or the tolerance, if larger) is another loss."""

Verdict = Literal["same", "FAILED", "not applicable"]


@frozen
class Measured:
    """A loss, and the gradient of each trainable parameter by name; None if a parameter has no gradient."""

    loss: float
    gradients: Mapping[str, torch.Tensor | None]


@frozen
class Gap:
    """The relative differences of one `Measured` from another: in loss, in all gradients and in the worst parameter."""

    loss: float
    gradient: float
    worst: float
    worst_parameter: str

    def within(self, tolerance: float) -> bool:
        """Whether all differences are allowed; NaN never is."""
        return self.loss <= tolerance and self.gradient <= tolerance and self.worst <= WORST * tolerance


@frozen
class Line:
    """One line of the table: what was compared, how much it differs, and the verdict with its reason."""

    what: str
    verdict: Verdict
    gap: Gap | None = None
    tolerance: float | None = None
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The line as JSON values, with null in place of numbers that are not finite."""
        gaps = [None if self.gap is None else getattr(self.gap, name) for name in ("loss", "gradient", "worst")]
        finite = [one if one is not None and math.isfinite(one) else None for one in gaps]
        return {
            "what": self.what,
            "verdict": self.verdict,
            **dict(zip(("loss_gap", "gradient_gap", "worst_gap"), finite, strict=True)),
            "worst_parameter": self.gap.worst_parameter if self.gap else None,
            "tolerance": self.tolerance,
            "why": self.why,
        }


@frozen
class Report:
    """The result of a self-test; `tokens` counts all tokens of the rows, and `supervised` sums their weights."""

    model: str
    rows: int
    tokens: int
    supervised: float
    dtype: str
    tolerance: float
    reference: str
    loss: float
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """How many comparisons failed."""
        return sum(line.verdict == "FAILED" for line in self.lines)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        lines = [line.as_dict() for line in self.lines]
        return {"schema": 1, **attrs.asdict(self, recurse=False), "lines": lines, "failed": self.failed}


def judge(what: str, gap: Gap, tolerance: float, why: str = "") -> Line:
    """The line for a difference: "same" if it is within the tolerance."""
    return Line(what, "same" if gap.within(tolerance) else "FAILED", gap, tolerance, why)


def first_line_of(error: Exception) -> str:
    """The first line of an error's message, with its type unless it is an error of our own."""
    first = (error.what if isinstance(error, SFTCoreError) else str(error)).strip().partition("\n")[0]
    return first if isinstance(error, SFTCoreError) else f"{type(error).__name__}: {first}"


def gap_between(got: Measured, wanted: Measured) -> Gap:
    """How much `got` differs from `wanted`, relative to `wanted` and computed in float32."""
    norms = {name: 0.0 if one is None else float(one.float().norm()) for name, one in wanted.gradients.items()}
    floor = FLOOR * max(norms.values(), default=0.0)
    off: dict[str, float] = {}
    for name, one in wanted.gradients.items():
        other = got.gradients.get(name)
        if one is None or other is None:
            off[name] = norms[name] if other is None else float(other.float().norm())
        else:
            off[name] = float((other.float().to(one.device) - one.float()).norm())
    parts = {name: _ratio(off[name], max(norms[name], floor)) for name in norms}
    worst = max(parts, key=lambda name: math.inf if math.isnan(parts[name]) else parts[name])
    return Gap(
        _ratio(abs(got.loss - wanted.loss), abs(wanted.loss)),
        _ratio(math.hypot(*off.values()), math.hypot(*norms.values())),
        parts[worst],
        worst,
    )


def tolerance_of(model: Any, autocast: str | None) -> tuple[float, str]:
    """The tolerance for this model, and its reason: the coarsest dtype among its parameters and the autocast."""
    import torch

    quantised = quantisation_of(model)
    if quantised and getattr(causal_model(model), "is_loaded_in_8bit", False):
        return EIGHT_BITS_TOLERANCE, f"{quantised}"
    kinds = {str(one.dtype).removeprefix("torch.") for one in model.parameters() if one.is_floating_point()}
    names = {name for name in (*kinds, autocast) if name in TOLERANCES} or {"float32"}
    coarsest = max(names, key=lambda name: TOLERANCES[name])
    spelled = f"{coarsest} with a base of {quantised}" if quantised else coarsest
    on_accelerator = next(model.parameters()).device.type != "cpu"
    if coarsest == "float32" and on_accelerator and torch.backends.cuda.matmul.allow_tf32:
        return TF32_TOLERANCE, f"{spelled}, multiplied in TF32"
    return TOLERANCES[coarsest], spelled


# --- The reference ----------------------------------------------------------------------------------------------------
Row = Mapping[str, Any]
"""input_ids and labels, which are lists of length T, and weights if the run has them."""


def num_items(rows: Sequence[Row]) -> float:
    """The sum of the weights of all supervised tokens, without the first token of each row, which is not predicted."""
    return float(sum(sum(weight for _, _, weight in _targets(row)) for row in rows))


def measure_reference(model: Any, rows: Sequence[Row]) -> Measured:
    """The reference: cross-entropy and its gradients, row by row so that only one row's graph exists at a time."""
    import torch

    total, loss = num_items(rows), 0.0
    model.zero_grad()
    for row in rows:
        logits_NV, labels_N, weights_N = supervised_logits(model, row)
        # float32 sums over a large vocabulary are off by about 1e-5, which is more than the differences looked for
        exact_NV = logits_NV if logits_NV.device.type == "mps" else logits_NV.double()
        losses_N = torch.nn.functional.cross_entropy(exact_NV, labels_N, reduction="none")
        share = (losses_N * weights_N).sum() / total
        share.backward()
        loss += float(share.detach())
    return Measured(loss, take_gradients(model))


def measure_with_loss(model: Any, rows: Sequence[Row], loss: LossFunction) -> Measured | None:
    """The reference for another loss: its value and gradients on all logits of all rows at once.

    None if it cannot be called that way; it then has to be cross-entropy.
    """
    import torch

    model.zero_grad()
    try:
        logits_NV, labels_N, weights_N = (
            torch.cat(parts) for parts in zip(*(supervised_logits(model, row) for row in rows), strict=True)
        )
        weighted = any(row.get("weights") is not None for row in rows)
        total = torch.tensor(num_items(rows), device=logits_NV.device)
        found = loss(logits_NV, lambda logits: logits, labels_N, weights_N if weighted else None, total).loss
        found.backward()
    except (SFTCoreError, AttributeError, TypeError, RuntimeError):
        return None
    return Measured(float(found.detach()), take_gradients(model))


def supervised_logits(model: Any, row: Row) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The float32 logits that predict supervised tokens, those tokens, and their weights: (N, V), (N,), (N,)."""
    import torch

    device = model.get_input_embeddings().weight.device
    ids_1T = torch.tensor([list(row["input_ids"])], device=device)
    logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, -ids_1T.shape[1] :]
    positions, labels, weights = zip(*_targets(row), strict=True)
    chosen_NV = logits_TV[torch.tensor(positions, device=logits_TV.device)].float()
    return (
        chosen_NV,
        torch.tensor(labels, device=chosen_NV.device),
        torch.tensor(weights, device=chosen_NV.device, dtype=torch.float32),
    )


def take_gradients(model: Any, scale: float = 1.0) -> dict[str, torch.Tensor | None]:
    """Remove the gradients from the model, and return those of its trainable parameters divided by `scale`."""
    found = {name: one.grad for name, one in model.named_parameters() if one.requires_grad}
    for one in model.parameters():
        one.grad = None
    return found if scale == 1 else {name: None if one is None else one / scale for name, one in found.items()}


def _targets(row: Row) -> Iterator[tuple[int, int, float]]:
    """For each supervised token: the position that predicts it, the token and its weight."""
    labels, weights = row["labels"], row.get("weights")
    for position, label in enumerate(labels[1:]):
        weight = 1.0 if weights is None else float(weights[position + 1])
        if label != IGNORED and weight > 0:
            yield position, int(label), weight


# --- Making a model comparable ----------------------------------------------------------------------------------------
@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Set every dropout and jitter rate to 0 inside, so that nothing is random, without leaving training mode."""
    changed: list[tuple[Any, str, Any]] = []
    for module in model.modules():
        is_dropout = "dropout" in type(module).__name__.lower()
        for name, value in list(vars(module).items()):
            rate = ("drop" in name or "jitter" in name or (is_dropout and name == "p")) and isinstance(value, float)
            if rate and value:
                changed.append((module, name, value))
                setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


@contextmanager
def with_attention(model: Any, implementation: str | None) -> Iterator[None]:
    """Use another attention inside, by its name in transformers' registry; None changes nothing."""
    causal = causal_model(model)
    before = causal.config.get_text_config()._attn_implementation
    if implementation is None or implementation == before:
        yield
        return
    causal.set_attn_implementation(implementation)
    try:
        yield
    finally:
        causal.set_attn_implementation(before)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch afterwards."""
    import random

    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.current_accelerator()
    with torch.random.fork_rng(device_type=accelerator.type if accelerator else "cuda"):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def fill_zero_parameters(model: Any) -> bool:
    """Fill trainable parameters that are all zero with small random numbers, and return whether there were any.

    In a new adapter, the zeros of one factor hide the gradients of the other.
    """
    import torch

    generator, filled = torch.Generator().manual_seed(0), False
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad and one.ndim > 1 and not one.any():
                one.copy_(0.02 * torch.randn(one.shape, generator=generator))
                filled = True
    return filled


def weights_hash(model: Any) -> str:
    """A hash of every bit of the weights."""
    import hashlib

    import torch

    found = hashlib.blake2b()
    for name, one in model.state_dict(keep_vars=True).items():
        if isinstance(one, torch.Tensor) and one.device.type != "meta":
            found.update(name.encode())
            found.update(one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _ratio(part: float, whole: float) -> float:
    return 0.0 if part == 0 else part / whole if whole else math.inf
