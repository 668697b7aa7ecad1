"""Find out whether a loss is the negative log-likelihood of tokens: the exponential of its mean is then a perplexity.

This is measured, not declared: a loss may be anybody's. Labels are the most likely tokens and others, on hidden states
that are scaled until the model prefers some tokens to others, so that a loss which weighs, clips or smooths differs.

Shapes: N positions, W width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import define, field

from sftcore.core.errors import said_by
from sftcore.core.types import LossFunction, LossOutput
from sftcore.documents.proof import evaluation_mode, ordinary_token_ids
from sftcore.losses.loss_call import at_places
from sftcore.model.bound_loss import BoundLoss, LossRequest

if TYPE_CHECKING:
    import torch

TOKENS = 16
"""The tokens that a loss is tried on."""
BOUND, HALF_BOUND = 1e-3, 2e-2
"""Allowed differences, relative above 1 nat, where the head computes in float32, and in half precision."""
_SPREAD = 3.0
"""The standard deviation that logits are brought to, in nats."""


def not_a_likelihood(
    loss: LossFunction, model: Any, causal: Any, device: torch.device, *, gathers: bool, longest: int | None = None
) -> str:
    """Why the mean of a loss is not one of negative log-likelihoods, in words; empty where it is.

    Args:
        loss: what `make_loss` returned.
        model: what is called, as it is wrapped, under the caller's autocast; all processes call it together.
        causal: the causal model in it.
        device: where its inputs are.
        gathers: whether the head is called on hidden states, as `BoundLoss.gathers`.
        longest: how many tokens a row may have.
    """
    import torch

    known = ordinary_token_ids(causal.config)
    count = min(TOKENS, longest or TOKENS)
    ids = torch.tensor([[known[place * len(known) // count] for place in range(count)]], device=device)
    inner = _Measured(loss)
    num_items = torch.full((), float(count - 1), device=device)
    try:
        with evaluation_mode(model), torch.no_grad():
            bound = BoundLoss(inner, "" if gathers else "all logits are built")
            with bound.on(causal):
                bound.ask(model, {"input_ids": ids, "use_cache": False}, LossRequest(ids, num_items))
    except Exception as error:  # a loss or a model may be anybody's, and an evaluation goes on without a perplexity
        return f"it could not be compared with one: {said_by(error)}"
    return inner.fault


@define
class _Measured:
    """A loss that measures another one with what the model gives it."""

    loss: LossFunction
    fault: str = field(default="it was not asked", init=False)

    def __call__(self, hidden: Any, head: Any, labels: Any, weights: Any, num_items: Any) -> LossOutput:
        self.fault = _fault(self.loss, hidden.detach(), head, labels)
        return LossOutput(hidden.float().sum() * 0, None, labels.new_zeros(()))


def _fault(loss: LossFunction, hidden_NW: torch.Tensor, head: Any, labels_N: torch.Tensor) -> str:
    import torch

    half = hidden_NW.dtype != torch.float32 or torch.is_autocast_enabled(hidden_NW.device.type)
    bound = HALF_BOUND if half else BOUND
    spread = float(head(hidden_NW).float().std(-1).mean())
    scaled_NW = hidden_NW * (_SPREAD / spread if spread > 0 else 1.0)
    for states_NW in (hidden_NW, scaled_NW):
        logits_NV = head(states_NW).float()
        places_N = torch.arange(len(labels_N), device=labels_N.device)
        others_N = (places_N * logits_NV.shape[-1] // len(labels_N)).to(labels_N)
        for chosen_N in (logits_NV.argmax(-1).to(labels_N), others_N):
            wanted = float(torch.nn.functional.cross_entropy(logits_NV, chosen_N.to(logits_NV.device)))
            with at_places(range(len(chosen_N))):
                count = torch.full((), float(len(chosen_N)), device=hidden_NW.device)
                got = float(loss(states_NW, head, chosen_N, None, count).loss)
            if not abs(got - wanted) <= bound * max(1.0, abs(wanted)):
                return f"on {len(chosen_N)} tokens it is {got:.4g} where the negative log-likelihood is {wanted:.4g}"
    return ""
