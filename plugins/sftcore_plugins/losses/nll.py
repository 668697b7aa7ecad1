"""Negative log-likelihood, without ever building the full logits."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from attrs.validators import ge, optional

from sftcore import LoadedModel, LossFunction, Plan, TokenLoss, hookimpl, plugin


@plugin
class NLL:
    """Mean negative log-likelihood over supervised tokens, the head applied in chunks."""

    chunk: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Positions whose logits exist at a time; None: by device and vocabulary."""

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["loss.cross_entropy"]

    @hookimpl
    def make_loss(self, loaded: LoadedModel, plan: Plan) -> LossFunction:
        return TokenLoss(lambda log_probs: -log_probs, self.chunk)
