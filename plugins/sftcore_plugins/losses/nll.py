"""Negative log-likelihood, without ever building the full logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge

from sftcore import LoadedModel, LossFunction, LossOutput, Plan, hookimpl, plugin

if TYPE_CHECKING:
    import torch


@plugin
class NLL:
    """Mean negative log-likelihood over supervised tokens, the head applied in chunks.

    At most `chunk` x vocabulary logits exist at a time, in the forward and in the backward pass (compare Wijmans et al.
    2024, arXiv:2411.09009).
    """

    chunk: int = attrs.field(default=512, validator=ge(1))

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["loss.cross_entropy"]

    @hookimpl
    def make_loss(self, loaded: LoadedModel, plan: Plan) -> LossFunction:
        return ChunkedNLL(self.chunk)


@attrs.frozen
class ChunkedNLL:
    """See `sftcore.LossFunction` for shapes and dtypes."""

    chunk: int

    def __call__(
        self,
        hidden: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        labels: torch.Tensor,
        weights: torch.Tensor | None,
        num_items: torch.Tensor,
    ) -> LossOutput:
        import torch
        from torch.utils.checkpoint import checkpoint

        def part(hidden: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> list[torch.Tensor]:
            logits = head(hidden).float()
            log_z = logits.logsumexp(-1)
            nll = log_z - logits.gather(-1, labels[:, None]).squeeze(-1)
            with torch.no_grad():
                entropy = log_z - (logits - log_z[:, None]).exp().mul_(logits).sum(-1)
                correct = logits.argmax(-1) == labels
            return [(nll if weights is None else nll * weights).sum(), entropy.sum(), correct.sum()]

        # Without supervised tokens there is one empty part: a zero that still reaches every parameter
        starts = range(0, max(len(labels), 1), self.chunk)
        parts = [
            checkpoint(
                part,
                hidden[at : at + self.chunk],
                labels[at : at + self.chunk],
                None if weights is None else weights[at : at + self.chunk],
                use_reentrant=False,
            )
            for at in starts
        ]
        total, entropy, correct = (torch.stack(column).sum() for column in zip(*parts, strict=True))
        return LossOutput(total / num_items.clamp(min=1e-6), entropy, correct)
