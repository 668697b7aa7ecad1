"""The perplexity of a model on token rows, by which a quantised model is judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from sftcore.core.types import IGNORED, TokenizedRow


@frozen
class Perplexity:
    """The exponential of the mean negative log-likelihood, over the supervised tokens and over all tokens."""

    supervised: float
    every: float
    num_supervised: int
    num_tokens: int


def perplexity(model: Any, rows: Sequence[TokenizedRow]) -> Perplexity:
    """The perplexity over all rows, each computed by itself without padding and without its first token.

    Args:
        model: a causal language model; it is put into evaluation mode.
        rows: token rows; without labels, every token counts as supervised.
    """
    import torch

    model.eval()
    sums, counts = [0.0, 0.0], [0, 0]
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([row.input_ids], device=model.device)
            logits_TV = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            losses_T = torch.nn.functional.cross_entropy(logits_TV, ids[0, 1:], reduction="none")
            losses_T = losses_T.cpu().double()  # not every device has float64
            labels = torch.tensor(row.input_ids if row.labels is None else row.labels)
            counted_T = labels[1:] != IGNORED
            for i, part in enumerate((losses_T[counted_T], losses_T)):
                sums[i] += part.sum().item()
                counts[i] += len(part)
    supervised, every = (_exp(total, count) for total, count in zip(sums, counts, strict=True))
    return Perplexity(supervised, every, *counts)


def _exp(total: float, count: int) -> float:
    """The exponential of the mean; a ruined model has an infinite perplexity rather than an overflow."""
    if not count:
        return math.nan
    mean = total / count
    return math.exp(mean) if mean < 700 else math.inf
