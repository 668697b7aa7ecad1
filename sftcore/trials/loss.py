"""Try a loss: its shapes, its normaliser, its weights and its gradient, on the model's own hidden states and head.

A step's loss is added up from micro-batches and processes, each divided by the `num_items` of all of them. So it halves
where `num_items` doubles, and doubles where all tokens are there twice.

Shapes: N positions, W width (V, the vocabulary, where the head is the identity).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attrs import define, field

from sftcore.core.door import PASSED as PASSED_ON
from sftcore.core.errors import ModelError, SFTCoreError, said_by
from sftcore.core.types import LossFunction, LossOutput
from sftcore.losses.loss_call import at_places
from sftcore.losses.token_loss import TokenLoss
from sftcore.model.bound_loss import BoundLoss, LossRequest
from sftcore.trials.outcome import PASSED, Outcome

if TYPE_CHECKING:
    import torch

    Head = Callable[[torch.Tensor], torch.Tensor]

BOUND, HALF_BOUND = 1e-3, 2e-2
"""Allowed relative differences, where the head computes in float32, and in half precision."""
COLLINEAR = 1e-5
"""A gradient whose cosine with that of cross-entropy is nearer to 1 than this has its direction."""


def try_loss_in_model(
    loss: LossFunction,
    model: Any,
    causal: Any,
    ids: torch.Tensor,
    *,
    gathers: bool = True,
    weighted: bool = True,
    gradients: bool = True,
) -> Outcome:
    """Try a loss inside one forward pass of a model, under whatever autocast the caller is in.

    Args:
        loss: what `make_loss` returned.
        model: what is called, as it is wrapped; `causal` is the causal model in it.
        ids: (1, T) int64 on the model's device, T even and at least 4.
        gathers: whether the head is called on hidden states, as `BoundLoss.gathers`; the loss is given logits if not.
        weighted: whether rows have weights, which the loss then has to honour.
        gradients: False where weights are sharded, and no backward pass inside the forward pass is safe.

    Raises:
        ModelError: the model fails before it comes to a loss, or its hidden states are not finite.
    """
    import torch

    module, known = getattr(loss, "function", loss), {id(one) for one in model.parameters()}
    named = module.named_parameters() if isinstance(module, torch.nn.Module) else ()
    own = {name: one for name, one in named if one.requires_grad and id(one) not in known}
    inner = _Inside(loss, weighted, gradients, own)
    bound = BoundLoss(inner, "" if gathers else "all logits are built")
    num_items = torch.full((), float(ids.shape[1] - 1), device=ids.device)
    try:
        with bound.on(causal), torch.no_grad():
            bound.ask(model, {"input_ids": ids, "use_cache": False}, LossRequest(ids, num_items))
    except Exception as error:  # whatever stands in the model may raise anything
        if inner.entered or isinstance(error, SFTCoreError) or type(error).__name__ in PASSED_ON:
            raise
        what = f"the model cannot be run on {ids.shape[1]} ordinary tokens, before any loss: {said_by(error)}."
        raise ModelError(what) from error
    return inner.outcome


@define
class _Inside:
    """A loss that tries another one with what the model gives it."""

    loss: LossFunction
    weighted: bool
    gradients: bool
    own: Mapping[str, Any]
    outcome: Outcome = field(default=PASSED)
    entered: bool = False

    def __call__(self, hidden: Any, head: Any, labels: Any, weights: Any, num_items: Any) -> LossOutput:
        if not bool(hidden.isfinite().all()):
            raise ModelError("the model's hidden states are NaN or Inf on ordinary tokens, before any loss.")
        self.entered = True
        self.outcome = try_loss(
            self.loss, hidden, head, labels, weighted=self.weighted, gradients=self.gradients, own=self.own
        )
        zero = hidden.float().sum() * 0
        return LossOutput(zero, None, labels.new_zeros(()))


def try_loss(
    loss: LossFunction,
    hidden_NW: torch.Tensor,
    head: Head,
    labels_N: torch.Tensor,
    *,
    weighted: bool = True,
    gradients: bool = True,
    own: Mapping[str, Any] = MappingProxyType({}),
) -> Outcome:
    """Try a loss on these hidden states; N is odd, so that tokens left out in some pattern are missed.

    `own` are parameters of the loss that the model does not have. Neither gradients nor random states are left behind:
    `torch.autograd.grad` is asked, and nothing else.
    """
    import torch

    device = hidden_NW.device
    count = len(labels_N)
    ones_N = torch.ones(count, device=device)
    hidden_NW = hidden_NW.detach()
    half = hidden_NW.dtype != torch.float32 or torch.is_autocast_enabled(device.type)
    bound = HALF_BOUND if half else BOUND

    def value(repeats: int = 1, items: float = 1.0, weights_N: torch.Tensor | None = None) -> float:
        states, labels = hidden_NW.repeat(repeats, 1), labels_N.repeat(repeats)
        with torch.no_grad(), at_places([*range(count)] * repeats):
            found = loss(states, head, labels, weights_N, torch.full((), items * count, device=device))
        return float(found.loss)

    with torch.set_grad_enabled(gradients):
        states_NW = hidden_NW.clone().requires_grad_(gradients)
        given = labels_N.clone()
        output = loss(states_NW, head, labels_N, None, torch.full((), float(count), device=device))
        if not torch.equal(states_NW.detach(), hidden_NW) or not torch.equal(labels_N, given):
            labels_N.copy_(given)
            return Outcome("it writes into the hidden states or the labels that it is given (allowed: nothing)")
        if fault := _shape_fault(output, count):
            return Outcome(fault)
        total = float(output.loss.detach())
        notes: tuple[str, ...] = ()
        if gradients:
            fault, notes = _gradient(loss, output, states_NW, head, labels_N, own, bound)
    if fault:
        return Outcome(fault)
    expected: list[tuple[str, float, float]] = [
        ("num_items twice as large", value(items=2.0), total / 2),
        ("all tokens twice, with the same num_items", value(repeats=2), 2 * total),
    ]
    if weighted:
        part_N = torch.linspace(0.1, 0.9, count, device=device)
        both = value(weights_N=part_N) + value(weights_N=1 - part_N)
        expected += [
            ("weights of 1", value(weights_N=ones_N), total),
            ("weights of 0.5", value(weights_N=ones_N / 2), total / 2),
            ("weights w and 1 - w added up", both, total),
        ]
    for what, got, wanted in expected:
        gap = abs(got - wanted) / max(abs(total), 1e-12)
        if not gap <= bound:
            return Outcome(
                f"with {what} its loss is {got:.4g}, and {wanted:.4g} is right (it is {total:.4g} on these "
                f"{count} tokens; they differ by {gap:.2g} of it, allowed: {bound:.0g})",
                fix="Sum the losses of the tokens, each times its weight, and divide by num_items.",
            )
    return Outcome(notes=notes)


def _shape_fault(output: Any, count: int) -> str:
    import torch

    if not isinstance(output, LossOutput):
        return f"it returns a {type(output).__name__}, not a LossOutput"
    for name, scalar in (("loss", output.loss), ("entropy", output.entropy), ("correct", output.correct)):
        if scalar is None and name == "entropy":
            continue
        if not isinstance(scalar, torch.Tensor) or scalar.shape != ():
            what = f"shape {tuple(scalar.shape)}" if isinstance(scalar, torch.Tensor) else type(scalar).__name__
            return f"its {name} is not a scalar tensor but {what}"
    if not math.isfinite(float(output.loss.detach())):
        return f"its loss is {float(output.loss.detach())} on {count} ordinary tokens"
    correct = float(output.correct)
    if not 0 <= correct <= count or correct != int(correct):
        return f"it calls {correct:g} of {count} tokens correct"
    entropy = 0.0 if output.entropy is None else float(output.entropy.detach())
    if not -1e-3 * count <= entropy < math.inf:
        return f"its entropy is {entropy:g} on {count} ordinary tokens (allowed: 0 or more)"
    of_each = output.per_token
    if of_each is not None and not (of_each.is_floating_point() and bool(of_each.isfinite().all())):
        wrong = of_each[~of_each.isfinite()][:1].tolist() or of_each.dtype
        return f"its per_token holds {wrong}; expected the loss of each token in floats"
    return ""


def _gradient(
    loss: LossFunction,
    output: LossOutput,
    states_NW: torch.Tensor,
    head: Head,
    labels_N: torch.Tensor,
    own: Mapping[str, Any],
    bound: float,
) -> tuple[str, tuple[str, ...]]:
    """What is wrong with the gradient, and what a run should say of it."""
    import torch

    if not output.loss.requires_grad:
        return "its loss has no gradient: it is detached from the hidden states", ()
    module = getattr(head, "module", None)
    named: Mapping[str, Any] = dict(module.named_parameters()) if isinstance(module, torch.nn.Module) else {}
    trained = {name: one for name, one in named.items() if one.requires_grad}
    found = torch.autograd.grad(output.loss, [states_NW, *trained.values(), *own.values()], allow_unused=True)
    of_own = [name for name, gradient in zip(own, found[1 + len(trained) :], strict=True) if gradient is not None]
    found = found[: 1 + len(trained)]
    notes: tuple[str, ...] = ()
    if of_own:
        notes = (f"its own parameters ({', '.join(of_own)}) get gradients, and nothing trains or saves them",)
    for name, gradient in zip(["the hidden states", *(f"the head's {name}" for name in trained)], found, strict=True):
        if gradient is None:
            return f"no gradient reaches {name}", ()
        if not bool(torch.isfinite(gradient).all()):
            return f"the gradient of {name} is NaN or Inf on ordinary tokens", ()
    of_states = found[0].float().flatten()
    size = float(of_states.norm())
    if size == 0:
        return "the gradient of the hidden states is 0 everywhere", ()
    count = torch.full((), float(len(labels_N)), device=states_NW.device)
    half = len(labels_N) // 2
    half_NW = states_NW.detach()[:half].clone().requires_grad_()
    with at_places(range(half)):
        alone = loss(half_NW, head, labels_N[:half], None, count).loss
    alone_NW = torch.autograd.grad(alone, half_NW)[0]
    off = float((alone_NW - found[0][:half]).float().norm()) / max(float(found[0][:half].float().norm()), 1e-12)
    if not off <= bound:
        notes += (
            f"the loss of a token depends on the others of its micro-batch (half of {len(labels_N)} tokens alone have "
            f"gradients that differ by {off:.2g}), so that accumulation and the number of processes change a step",
        )
    plain_NW = states_NW.detach().clone().requires_grad_()
    plain = TokenLoss(_negative)(plain_NW, head, labels_N, None, count)
    other = torch.autograd.grad(plain.loss, plain_NW)[0].float().flatten()
    cosine = float((of_states @ other) / (size * other.norm()))
    if cosine < 0:
        return "", (
            *notes,
            f"its gradient makes the labels less likely (cosine with that of cross-entropy: {cosine:.2f})",
        )
    factor = size / float(other.norm())
    value, of_plain = float(output.loss.detach()), factor * float(plain.loss.detach())
    if cosine > 1 - COLLINEAR and abs(value - of_plain) <= 0.01 * value and not 0.95 <= factor <= 1.05:
        return "", (
            *notes,
            f"it is cross-entropy times {factor:.3g}, as learning_rate could be",
        )
    return "", notes


def _negative(log_probs: torch.Tensor) -> torch.Tensor:
    return -log_probs
