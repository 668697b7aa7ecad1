"""The answer of a loss plugin that leaves the loss to the model's own forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen

from sftcore.losses.token_loss import PerToken, TokenLoss

if TYPE_CHECKING:
    import torch


def _negative(log_probs: torch.Tensor) -> torch.Tensor:
    return -log_probs


@frozen
class OwnLoss(TokenLoss):
    """A run whose `make_loss` returns this trains with the loss that the model's own forward computes from labels.

    The forward is given `labels`, and `num_items_in_batch` where it takes it, as by transformers' Trainer. By itself
    this is the negative log-likelihood, from which entropy and accuracy are taken.
    """

    per_token: PerToken = field(default=_negative)
    of_model: ClassVar[bool] = True
