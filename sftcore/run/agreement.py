"""Whether two models say the same: their logits on rows of the run's own data, a conversation, and random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore.errors import DataError
from sftcore.run.saved import SavedRun

if TYPE_CHECKING:
    import torch

LENGTH = 64
"""Tokens of a row that are compared."""
_TRAINING_ROWS = 4
_CONVERSATION = [
    {"role": "user", "content": "Name three things that float, and say why the last one does."},
    {"role": "assistant", "content": "Wood, ice and a full bottle of oil: oil is lighter than the water it displaces."},
    {"role": "user", "content": "¿Y una piedra pómez? 42 × 3.5 = ?"},
]


@frozen
class Probes:
    """Rows of token ids, each up to LENGTH long, and where they are from."""

    rows: tuple[tuple[int, ...], ...]
    description: str


@frozen
class Agreement:
    """How far the logits of two models are apart, over all positions and tokens.

    gap: the largest difference; scale: the largest logit of the first model; same_token: the share of positions at
    which both have the same most likely token; tolerance: what the gap may be, None where it is only told.
    """

    what: str
    gap: float
    scale: float
    same_token: float
    tolerance: float | None

    @property
    def holds(self) -> bool:
        """Whether the gap is within the tolerance; a gap that is no number is not."""
        return self.tolerance is None or self.gap <= self.tolerance

    def __str__(self) -> str:
        limit = "" if self.tolerance is None else f" (at most {self.tolerance:.2g})"
        same = f"same most likely token at {100 * self.same_token:.1f}% of the positions"
        return (
            f"{self.what}: largest gap of a logit {self.gap:.2g}{limit} where the largest is {self.scale:.3g}, {same}"
        )


def probes_for(run: SavedRun, tokenizer: Any) -> Probes:
    """Rows of the run's training data where they can be found, a conversation in its template, random tokens.

    The random row ends with the last 16 ids of the vocabulary, where tokens that were added stand.
    """
    rows: list[tuple[int, ...]] = []
    told = []
    try:
        from sftcore.run.saved_rows import rows_of_run

        found = rows_of_run(run, tokenizer, _TRAINING_ROWS, max_length=LENGTH)
        rows += [tuple(row.input_ids) for row in found.rows]
        told.append(f"{len(found.rows)} rows of the training data")
    except DataError:
        pass  # a run from Python names no data, and an adapter from elsewhere has none
    if getattr(tokenizer, "chat_template", None):
        encoded = tokenizer.apply_chat_template(_CONVERSATION, add_generation_prompt=True, return_dict=True)
        rows.append(tuple(encoded["input_ids"])[:LENGTH])
        told.append("a conversation")
    rows.append(_random(len(tokenizer)))
    return Probes(tuple(rows), ", ".join([*told, "random tokens"]))


def _random(vocabulary: int) -> tuple[int, ...]:
    import random

    last = range(max(vocabulary - 16, 0), vocabulary)
    return (*(random.Random(0).randrange(vocabulary) for _ in range(LENGTH - len(last))), *last)


def logits_of(model: Any, probes: Probes) -> list[torch.Tensor]:
    """The model's logits, one (tokens, vocabulary) float32 tensor for each row, on the CPU."""
    import torch

    model.eval()
    with torch.inference_mode():
        return [
            model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0].float().cpu()
            for row in probes.rows
        ]


def compare(
    what: str, wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor], tolerance: float | None
) -> Agreement:
    """How far `found` is from `wanted`; logits as from `logits_of`, the vocabulary may have grown by padding."""
    import torch

    gap = scale = 0.0
    same = total = 0
    for one, other in zip(wanted, found, strict=True):
        width = min(one.shape[-1], other.shape[-1])
        one, other = one[:, :width], other[:, :width]
        difference = (one - other).abs().max()
        # max() of Python would pass over a gap that is no number
        gap = float(torch.maximum(difference, torch.tensor(gap)))
        scale = max(scale, float(one.abs().max()))
        same += int((one.argmax(-1) == other.argmax(-1)).sum())
        total += len(one)
    return Agreement(what, gap, scale, same / total, tolerance)
