"""Losses that are a function of each label's log-probability and never build the full logits.

`nll` and `dft` are made with `TokenLoss`, and so can third-party losses be. It calls the head in chunks, computes the
gradient while it has a chunk's logits, and counts entropy and accuracy in the same pass.

Shapes: N positions, C positions of a chunk, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import field, frozen
from attrs.validators import ge, optional

from sftcore.core.types import LossOutput

if TYPE_CHECKING:
    import torch

PerToken: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"


@frozen
class TokenLoss:
    """A `LossFunction` from `per_token`: log-probabilities of the labels, (C,) float32, to losses, (C,) float32.

    `per_token` is differentiated by autograd, so it must call `.detach()` where no gradient should flow. At most
    `chunk` x vocabulary logits exist at a time, in the forward and in the backward pass (compare Wijmans et al. 2024,
    arXiv:2411.09009). None: as many positions as fit the device's share of memory, see `positions_at_once`.

    Raises:
        ValueError: when it is called, `per_token` gives something else than one loss for each token.

    >>> import torch
    >>> loss = TokenLoss(lambda log_probs: -log_probs)
    >>> out = loss(torch.zeros(2, 4), torch.nn.Identity(), torch.tensor([0, 3]), None, torch.tensor(2))
    >>> round(out.loss.item(), 4)
    1.3863
    """

    per_token: PerToken
    chunk: int | None = field(default=None, validator=optional(ge(1)))

    def __call__(
        self,
        hidden: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        labels: torch.Tensor,
        weights: torch.Tensor | None,
        num_items: torch.Tensor,
    ) -> LossOutput:
        import torch

        from sftcore.losses.asked_again import is_transformed
        from sftcore.losses.head_gradient import sum_of_chunks
        from sftcore.losses.log_probs import label_log_probs

        # a transform of torch.func takes no writes into a tensor from outside
        per_token = None if is_transformed() else torch.zeros(len(labels), device=hidden.device)

        def part(rows_CW: torch.Tensor, at: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            chunk = slice(at, at + len(rows_CW))
            log_probs_C, entropy_C, correct_C = label_log_probs(head(rows_CW), labels[chunk])
            losses_C = self.per_token(log_probs_C)
            if getattr(losses_C, "shape", None) != log_probs_C.shape:
                raise TypeError(_shape_fault(losses_C, log_probs_C))
            if per_token is not None:
                per_token[chunk] = losses_C.detach()
            if weights is not None:
                losses_C = losses_C * weights[chunk]
            return losses_C.sum(), entropy_C.sum(), correct_C.sum()

        total, entropy, correct = sum_of_chunks(part, hidden, head, self.chunk)
        return LossOutput(total / num_items.clamp(min=1e-6), entropy, correct, per_token)


def _shape_fault(losses: Any, log_probs_C: torch.Tensor) -> str:
    shape = getattr(losses, "shape", None)
    got = "None" if losses is None else type(losses).__name__ if shape is None else f"shape {tuple(shape)}"
    return (
        f"per_token gives the loss of each token, of shape {tuple(log_probs_C.shape)} as the log-probabilities that it "
        f"gets, and it gave {got}. TokenLoss sums them and divides by num_items"
    )
