"""The perplexity of a model on token rows: what a quantised model is judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from sftcore.core.types import IGNORED, TokenizedRow


@frozen
class Perplexity:
    """exp of the mean negative log-likelihood, over the supervised tokens and over all tokens."""

    supervised: float
    every: float
    num_supervised: int
    num_tokens: int


def perplexity(model: Any, rows: Sequence[TokenizedRow]) -> Perplexity:
    """Each row by itself, without padding; the first token of a row has nothing to be predicted from.

    Args:
        model: a causal language model; it is put into evaluation.
        rows: with labels, where they do not count everywhere.
    """
    import torch

    model.eval()
    sums, counts = [0.0, 0.0], [0, 0]
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([row.input_ids], device=model.device)
            logits_TV = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            losses_T = torch.nn.functional.cross_entropy(logits_TV, ids[0, 1:], reduction="none").double()
            labels = torch.tensor(row.input_ids if row.labels is None else row.labels, device=model.device)
            counted_T = labels[1:] != IGNORED
            for i, part in enumerate((losses_T[counted_T], losses_T)):
                sums[i] += part.sum().item()
                counts[i] += len(part)
    supervised, every = (_exp(total, count) for total, count in zip(sums, counts, strict=True))
    return Perplexity(supervised, every, *counts)


def _exp(total: float, count: int) -> float:
    """exp of the mean; a model that was destroyed has an infinite perplexity, not an overflow."""
    if not count:
        return math.nan
    mean = total / count
    return math.exp(mean) if mean < 700 else math.inf
