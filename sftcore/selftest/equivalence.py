"""The reference that the self-test compares with, and its report.

The reference runs each row alone through the model's own forward pass and builds all logits. The loss is their
cross-entropy in float64, summed over supervised tokens and divided by the sum of the tokens' weights.

Shapes: T tokens of a row, N supervised positions of all rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs import frozen

from sftcore.core.errors import SFTCoreError
from sftcore.core.types import IGNORED, LossFunction
from sftcore.trials.measured import Gap, Measured, take_gradients

if TYPE_CHECKING:
    import torch

OWN_LOSS = 1e-2
"""A loss that differs from cross-entropy by more than this fraction (or the tolerance, if larger) is another loss."""

Verdict = Literal["same", "FAILED", "not applicable"]


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


def _targets(row: Row) -> Iterator[tuple[int, int, float]]:
    """For each supervised token: the position that predicts it, the token and its weight."""
    labels, weights = row["labels"], row.get("weights")
    for position, label in enumerate(labels[1:]):
        weight = 1.0 if weights is None else float(weights[position + 1])
        if label != IGNORED and weight > 0:
            yield position, int(label), weight


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
