"""The loss of one micro-batch, in functions of one concern each: what is asked, what is shown, what is added up.

Shapes: B rows, T tokens. Positions are those of the tokens; the label at position t is predicted from position t - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen

from sftcore.core.types import IGNORED
from sftcore.model.bound_loss import NUM_ITEMS, WEIGHTS


@frozen
class LossBatch:
    """A micro-batch as the model is called with it.

    inputs: the model's arguments, labels (B, T) as they were given; weights: (B, T) float32, or None; num_tokens: what
    the collator counted, or None; num_items: () float32, the sum of weights that the loss is divided by.
    """

    inputs: dict[str, Any]
    weights: torch.Tensor | None
    num_tokens: torch.Tensor | None
    num_items: torch.Tensor

    @classmethod
    def of(cls, inputs: Mapping[str, Any], num_items: torch.Tensor | int | None, *, routers: bool) -> LossBatch:
        """From a collator's batch; `num_items` None counts those of this batch alone.

        Args:
            inputs: labels, and the model's other arguments.
            num_items: of the accumulated batch and all processes.
            routers: whether experts are balanced by the outputs of their routers.
        """
        inputs = {**inputs, "use_cache": False}
        weights, num_tokens = inputs.pop("weights", None), inputs.pop("num_tokens", None)
        if routers:
            inputs["output_router_logits"] = True
        if num_items is None:
            num_items = count_items([{"labels": inputs["labels"], "weights": weights}])
        return cls(inputs, weights, num_tokens, torch.as_tensor(num_items, device=inputs["labels"].device))

    def arguments(self) -> dict[str, Any]:
        """What asks the model's forward for the loss."""
        # A row's first token has nothing to be predicted from, not even where virtual tokens stand before it
        labels = self.inputs["labels"].clone()
        labels[:, 0] = IGNORED
        extra = {} if self.weights is None else {WEIGHTS: self.weights}
        return {**self.inputs, "labels": labels, **extra, NUM_ITEMS: self.num_items}

    def without_labels(self) -> dict[str, Any]:
        """What asks it for all logits."""
        return {key: value for key, value in self.inputs.items() if key != "labels"}

    @property
    def is_empty(self) -> bool:
        """Whether none of its tokens counts, as for a process that has run out of rows."""
        return self.num_tokens is not None and bool(self.num_tokens.sum() == 0)


def count_items(batches: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """The sum of weights over supervised positions, the first of each row left out: () float32."""
    total = torch.zeros(())
    for batch in batches:
        counts = batch["labels"][..., 1:] != IGNORED
        weights = batch.get("weights")
        found = counts.sum() if weights is None else (weights[..., 1:] * counts).sum()
        total = total.to(found.device) + found.float()
    return total


def other_loss(
    outputs: Any,
    batch: LossBatch,
    num_items: torch.Tensor | int | None,
    *,
    compute_loss_func: Callable[..., Any] | None,
    label_smoother: Callable[..., Any] | None,
) -> Any:
    """The loss of a user's function or of label smoothing, from all logits; None where the plugin's counts."""
    labels = batch.inputs["labels"]
    if compute_loss_func is not None:
        return None if batch.is_empty else compute_loss_func(outputs, labels, num_items_in_batch=num_items)
    if label_smoother is not None:
        divisor = {} if num_items is None else {"num_items_in_batch": num_items}
        return label_smoother(outputs, labels, shift_labels=True, **divisor)
    return None


def with_balance(loss: torch.Tensor, found: Mapping[str, Any], coefficient: float, steps: int) -> torch.Tensor:
    """The loss with the auxiliary loss of the experts, of which each of `steps` micro-batches brings its share."""
    return loss + coefficient * found["aux_loss"] / steps
