"""Loss and gradients of one model in two ways: the plain way of transformers, how far apart, and what is allowed.

Plain is each row alone through the model's own forward, all logits built, cross-entropy on them in float64, summed
over supervised tokens and divided by the sum of their weights.

Shapes: T tokens of a row, N supervised positions of all rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from sftcore.core.errors import SFTCoreError
from sftcore.core.types import IGNORED, LossFunction, LossOutput
from sftcore.model.precision import quantisation_of
from sftcore.model.unwrap import causal_model

if TYPE_CHECKING:
    import torch

TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Allowed gap of the loss, and of all gradients together, as a part of what is wanted, by the coarsest dtype."""
TF32_TOLERANCE = 1e-2
"""The same for float32 on an accelerator that was told to multiply in TF32."""
EIGHT_BITS_TOLERANCE = 2e-1
"""The same for 8-bit bases, which scale each product by the tokens that are multiplied with it."""
WORST = 10
"""How many times further off a single parameter may be, whose gradient may be a small difference of large numbers."""
FLOOR = 1e-3
"""A gradient below this part of the largest one is measured against that part: rounding is all that it holds."""
OWN_LOSS = 1e-2
"""A loss that lies further than this part from cross-entropy (or the tolerance, if larger) means something else."""

Verdict = Literal["same", "FAILED", "not applicable"]


@frozen
class Measured:
    """A loss, and the gradients of what trains by name; None where a parameter had none."""

    loss: float
    gradients: Mapping[str, torch.Tensor | None]


@frozen
class Gap:
    """How far `Measured` lies from another, as parts of the other: loss, all gradients, and the worst parameter's."""

    loss: float
    gradient: float
    worst: float
    worst_parameter: str

    def within(self, tolerance: float) -> bool:
        """Whether all of it is allowed; what is not a number never is."""
        return self.loss <= tolerance and self.gradient <= tolerance and self.worst <= WORST * tolerance


@frozen
class Line:
    """One line of the table: what was compared, the gap if there is one, and the verdict with its reason."""

    what: str
    verdict: Verdict
    gap: Gap | None = None
    tolerance: float | None = None
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with null for what is not a finite number."""
        gap = self.gap
        return {
            "what": self.what,
            "verdict": self.verdict,
            "loss_gap": _plain(gap.loss if gap else None),
            "gradient_gap": _plain(gap.gradient if gap else None),
            "worst_gap": _plain(gap.worst if gap else None),
            "worst_parameter": gap.worst_parameter if gap else None,
            "tolerance": self.tolerance,
            "why": self.why,
        }


@frozen
class Report:
    """What a self-test found. `tokens` counts those of the rows, `supervised` the sum of their weights."""

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
        """How many lines failed."""
        return sum(line.verdict == "FAILED" for line in self.lines)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        names = ("model", "rows", "tokens", "supervised", "dtype", "tolerance", "reference", "loss")
        found = {name: getattr(self, name) for name in names}
        lines = [line.as_dict() for line in self.lines]
        return {"schema": 1, **found, "lines": lines, "notes": list(self.notes), "failed": self.failed}


def judged(what: str, gap: Gap, tolerance: float, why: str = "") -> Line:
    """The line of a gap."""
    return Line(what, "same" if gap.within(tolerance) else "FAILED", gap, tolerance, why)


def said_of(error: Exception) -> str:
    """The first line of what an error says, with its type where it is none of ours."""
    first = (error.what if isinstance(error, SFTCoreError) else str(error)).strip().partition("\n")[0]
    return first if isinstance(error, SFTCoreError) else f"{type(error).__name__}: {first}"


def gap_between(got: Measured, wanted: Measured) -> Gap:
    """Relative gaps, in float32: of the loss, of all gradients as one vector, and of each parameter's."""
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
    worst = max(parts, key=lambda name: parts[name] if parts[name] == parts[name] else float("inf"))
    return Gap(
        _ratio(abs(got.loss - wanted.loss), abs(wanted.loss)),
        _ratio(_length(off.values()), _length(norms.values())),
        parts[worst],
        worst,
    )


def tolerance_of(model: Any, autocast: str | None) -> tuple[float, str]:
    """What is allowed for this model as it runs, and why: by the coarsest dtype of its parameters and the autocast."""
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


# --- The plain way ----------------------------------------------------------------------------------------------------
Row = Mapping[str, Any]
"""input_ids and labels, lists of T; weights too where the run has them."""


def num_items(rows: Sequence[Row]) -> float:
    """The sum of weights over supervised tokens; a row's first token is predicted from nothing."""
    return float(sum(sum(weight for _, _, weight in _targets(row)) for row in rows))


def plain(model: Any, rows: Sequence[Row]) -> Measured:
    """Cross-entropy, each row alone and its graph gone before the next one's is built."""
    import torch

    total, loss = num_items(rows), 0.0
    model.zero_grad()
    for row in rows:
        logits_NV, labels_N, weights_N = supervised_logits(model, row)
        # in float32 torch's own sums over a large vocabulary are off by some 1e-5, more than what is looked for here
        exact_NV = logits_NV if logits_NV.device.type == "mps" else logits_NV.double()
        losses_N = torch.nn.functional.cross_entropy(exact_NV, labels_N, reduction="none")
        share = (losses_N * weights_N).sum() / total
        share.backward()
        loss += float(share.detach())
    return Measured(loss, take_gradients(model))


def plain_of_its_own(model: Any, rows: Sequence[Row], loss: LossFunction) -> Measured:
    """Another loss on all logits of all rows at once."""
    model.zero_grad()
    found = at_once(model, rows, loss)
    found.backward()
    return Measured(float(found.detach()), take_gradients(model))


def at_once(model: Any, rows: Sequence[Row], loss: LossFunction) -> torch.Tensor:
    """The loss on all supervised positions of all rows, whose logits are given to it whole."""
    import torch

    logits_NV, labels_N, weights_N = (
        torch.cat(parts) for parts in zip(*(supervised_logits(model, row) for row in rows), strict=True)
    )
    weighted = any(row.get("weights") is not None for row in rows)
    total = torch.tensor(num_items(rows), device=logits_NV.device)
    return loss(logits_NV, lambda logits: logits, labels_N, weights_N if weighted else None, total).loss


def value_at_once(model: Any, rows: Sequence[Row], loss: LossFunction) -> float | None:
    """The loss on all logits at once; None from one that cannot be asked so, which then has to be cross-entropy."""
    try:
        return float(at_once(model, rows, loss))
    except (SFTCoreError, AttributeError, TypeError, RuntimeError):
        return None


def cross_entropy(hidden: Any, head: Any, labels: Any, weights: Any, num_items: Any) -> Any:
    """Cross-entropy as torch has it."""
    import torch

    losses = torch.nn.functional.cross_entropy(head(hidden), labels, reduction="none")
    total = (losses if weights is None else losses * weights).sum()
    return LossOutput(total / num_items, None, labels.new_zeros(()))


def supervised_logits(model: Any, row: Row) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Float32 logits where the next token counts, those tokens, and their weights: (N, V), (N,), (N,)."""
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
    """The gradients of what trains, taken from the model, which has none afterwards."""
    found = {name: one.grad for name, one in model.named_parameters() if one.requires_grad}
    for one in model.parameters():
        one.grad = None
    return found if scale == 1 else {name: None if one is None else one / scale for name, one in found.items()}


def _targets(row: Row) -> Iterator[tuple[int, int, float]]:
    """Where a token predicts one that counts: position, that token, its weight."""
    labels, weights = row["labels"], row.get("weights")
    for position, label in enumerate(labels[1:]):
        weight = 1.0 if weights is None else float(weights[position + 1])
        if label != IGNORED and weight > 0:
            yield position, int(label), weight


# --- A model whose numbers can be compared --------------------------------------------------------------------------
@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Training mode stays what it is, and nothing is drawn: every rate of dropout or jitter of its modules is 0."""
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
def attention(model: Any, implementation: str | None) -> Iterator[None]:
    """Another attention inside, by its name in transformers' registry; None leaves it."""
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
def random_state() -> Iterator[None]:
    """Python's, NumPy's and torch's random numbers go on afterwards as if nothing had been drawn."""
    import random

    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = {} if accelerator is None else {"device_type": accelerator.type}
    with torch.random.fork_rng(devices=None if accelerator else [], **kind):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def wake_adapter(model: Any) -> bool:
    """Give what trains and is zero small numbers: a new adapter's zeros would hide half of its gradients."""
    import torch

    generator, woken = torch.Generator().manual_seed(0), False
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad and one.ndim > 1 and not one.any():
                one.copy_(0.02 * torch.randn(one.shape, generator=generator))
                woken = True
    return woken


def digest(model: Any) -> str:
    """A hash of every bit of the weights, a tensor at a time."""
    import hashlib

    import torch

    found = hashlib.blake2b()
    for name, one in model.state_dict(keep_vars=True).items():
        if isinstance(one, torch.Tensor) and one.device.type != "meta":
            found.update(name.encode())
            found.update(one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def chunked(loss_plugin: Any, chunk: int) -> Any | None:
    """The loss plugin with another size of chunks, an option that its kind spells `chunk`; None without one."""
    from sftcore.core.plugin_class import options

    given = {one.name: getattr(loss_plugin, one.name) for one in options(type(loss_plugin))}
    if "chunk" not in given:
        return None
    make: Callable[..., Any] = type(loss_plugin)
    return make(**{**given, "chunk": chunk})


def _length(parts: Any) -> float:
    return float(sum(part * part for part in parts) ** 0.5)


def _ratio(part: float, whole: float) -> float:
    return 0.0 if part == 0 else part / whole if whole else float("inf")


def _plain(number: float | None) -> float | None:
    return None if number is None or number != number or abs(number) == float("inf") else number
