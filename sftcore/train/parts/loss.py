"""The loss of one micro-batch, in functions of one concern each: what is asked, what is shown, what is added up.

Shapes: B rows, T tokens. Positions are those of the tokens; the label at position t is predicted from position t - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen

from sftcore.core.errors import ConflictError
from sftcore.core.types import IGNORED
from sftcore.data.host_facts import HostFacts, facts_of
from sftcore.model.bound_loss import BoundLoss, LossRequest
from sftcore.model.known_masks import masks_known
from sftcore.train.losses.own_loss import own_arguments, own_loss
from sftcore.train.losses.weighted import smoothed_loss, weights_for


@frozen
class LossBatch:
    """A micro-batch as the model is called with it.

    inputs: the model's arguments without labels; request: labels, weights and normaliser; num_tokens: what the collator
    counted, or None; facts: what the host knows of it, or None.
    """

    inputs: dict[str, Any]
    request: LossRequest
    num_tokens: torch.Tensor | None
    facts: HostFacts | None

    @classmethod
    def of(
        cls,
        inputs: Mapping[str, Any],
        num_items: torch.Tensor | float | None,
        *,
        routers: bool,
        facts: HostFacts | None = None,
    ) -> LossBatch:
        """From a collator's batch; `num_items` None counts those of this batch alone.

        Args:
            inputs: labels (B, T), and the model's other arguments.
            num_items: of the accumulated batch and all processes.
            routers: whether experts are balanced by the outputs of their routers.
            facts: of the batch as it came from the loader.
        """
        inputs = {**inputs, "use_cache": False}
        labels, weights, num_tokens = (inputs.pop(name, None) for name in ("labels", "weights", "num_tokens"))
        if routers:
            inputs["output_router_logits"] = True
        if num_items is None:
            own = {"labels": labels, "weights": weights}
            num_items = count_items([own]) if facts is None else facts.num_items
        divisor = on_device(num_items, labels.device)
        request = LossRequest(labels, divisor, weights, None if facts is None else facts.positions, inputs=inputs)
        return cls(inputs, request, num_tokens, facts)

    @property
    def is_empty(self) -> bool:
        """Whether none of its tokens counts, as for a process that has run out of rows."""
        if self.facts is not None:
            return self.facts.num_items == 0
        return self.num_tokens is not None and bool(self.num_tokens.sum() == 0)


def count_items(batches: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """The sum of weights over supervised positions, the first of each row left out: () float32 on their device."""
    labels = [batch["labels"] for batch in batches]
    known = [facts_of(batch) for batch in batches]
    total = sum(facts.num_items for facts in known if facts is not None)
    for batch, facts in zip(batches, known, strict=True):
        if facts is None:
            counts = batch["labels"][..., 1:] != IGNORED
            weights = batch.get("weights")
            found = counts.sum() if weights is None else (weights[..., 1:] * counts).sum()
            total = found.float() + total
    return on_device(total, labels[0].device)


def on_device(number: torch.Tensor | float, device: torch.device) -> torch.Tensor:
    """() float32 of a number; one that the host has is written by the device itself, without a copy to wait for."""
    if isinstance(number, torch.Tensor):
        return number.to(device)
    return torch.full((), float(number), device=device)


def chosen_loss(
    batch: LossBatch,
    num_items: torch.Tensor | float | None,
    compute_loss_func: Callable[..., Any] | None,
    label_smoother: Any,
) -> Callable[[Any], Any] | None:
    """A user's loss function, or label smoothing, as a function of the model's outputs; None: the plugin's loss.

    Both are given the weights of the batch, and what the loss is divided by: where nobody says, their sum.

    Raises:
        ConflictError: the batch has weights, and the user's function takes none.
    """
    request = batch.request
    labels, weights = request.labels, request.weights
    if compute_loss_func is not None:
        if batch.is_empty:
            return None
        given = weights_for(compute_loss_func, weights)
        divisor = request.num_items if num_items is None else num_items
        return lambda outputs: compute_loss_func(outputs, labels, num_items_in_batch=divisor, **given)
    if label_smoother is not None:
        if weights is not None:
            epsilon = label_smoother.epsilon
            return lambda outputs: smoothed_loss(outputs.logits, labels, weights, request.num_items, epsilon)
        own = {} if num_items is None else {"num_items_in_batch": num_items}
        return lambda outputs: label_smoother(outputs, labels, shift_labels=True, **own)
    return None


def losses_of(
    model: Any, batch: LossBatch, bound: BoundLoss, other: Callable[[Any], Any] | None, *, with_outputs: bool
) -> tuple[dict[str, Any], Any]:
    """The scalars of `BoundLoss.ask`, and the model's outputs where they are wanted, from one call of the model.

    Where `other` computes the loss, or the model itself, the plugin's is only looked at for the metrics, without
    gradients.

    Raises:
        ConflictError: the plugin's loss would replace one of the model's own, which nobody chose.
    """
    labels = batch.request.labels
    own = other is None and bound.of_model and not batch.is_empty
    if other is None and bound.replaces is not None:
        raise bound.replaces
    with masks_known(batch.facts, batch.inputs):
        if other is None and not own and not with_outputs:
            return bound.ask(model, batch.inputs, batch.request), None
        if other is None and not own:
            found, outputs = bound.ask_whole(model, batch.inputs, batch.request)
            return found, without_virtual_tokens(outputs, labels)
        asked = own_arguments(model, batch.request) if own else {}
        outputs = without_virtual_tokens(model(**batch.inputs, **asked), labels)
    loss = other(outputs) if other is not None else own_loss(model, batch.request, outputs)
    with torch.no_grad():
        found = batch.request.found = bound.of_outputs(outputs, batch.request)
    return {**found, "loss": loss}, outputs


def without_virtual_tokens(outputs: Any, labels_BT: torch.Tensor) -> Any:
    """Outputs whose logits (B, T, V) begin with the batch's own tokens, where prompt learning has put others before."""
    logits = getattr(outputs, "logits", None)
    if logits is not None and logits.shape[1] > labels_BT.shape[1]:
        outputs.logits = logits[:, -labels_BT.shape[1] :]
    return outputs


def with_balance(
    loss: torch.Tensor, found: Mapping[str, Any], coefficient: float, steps: int, *, asked: bool
) -> torch.Tensor:
    """The loss with the auxiliary loss of the experts, of which each of `steps` micro-batches brings its share.

    Many models with experts do not compute one, which is an error only where the run has `asked` for it.

    Raises:
        ConflictError: the run asks for it, and the model returns none.
    """
    if "aux_loss" in found:
        return loss + coefficient * found["aux_loss"] / steps
    if asked:
        raise ConflictError(
            f"router_aux_loss_coef is {coefficient}, and the model does not return an auxiliary loss of its experts.",
            fix="Remove router_aux_loss_coef.",
        )
    return loss
