"""Dynamic fine-tuning: each token counts as much as the model already expects it."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from attrs.validators import ge, optional

from sftcore import LoadedModel, LossFunction, Plan, TokenLoss, hookimpl, plugin


@plugin
class DFT:
    """Negative log-likelihood times the token's own detached probability (Wu et al. 2025, arXiv:2508.05629)."""

    chunk: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Positions whose logits exist at a time; None: by device and vocabulary."""

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["loss.cross_entropy"]

    @hookimpl
    def make_loss(self, loaded: LoadedModel, plan: Plan) -> LossFunction:
        return TokenLoss(lambda log_probs: -log_probs * log_probs.detach().exp(), self.chunk)
