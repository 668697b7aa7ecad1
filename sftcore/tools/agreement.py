"""Whether two models say the same: their logits on rows of the run's own data, a conversation, and random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from sftcore.core.errors import DataError
from sftcore.tools.saved import SavedRun

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

    gap: the largest difference; scale: the largest logit of the first model; divergence: the mean Kullback-Leibler
    divergence of the second's next-token distribution from the first's, in nats; same_token: the share of positions at
    which both have the same most likely token. `most` is what the gap or, for half precision, the divergence may be:
    the gap of one logit in 49,152 is chance there. None where it is only told.
    """

    what: str
    gap: float
    scale: float
    divergence: float
    same_token: float
    measure: Literal["gap", "divergence"] = "gap"
    most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether it is within its limit; what is no number is not."""
        return self.most is None or getattr(self, self.measure) <= self.most

    def __str__(self) -> str:
        limit = {self.measure: "" if self.most is None else f" (at most {self.most:.2g})"}
        return (
            f"{self.what}: largest gap of a logit {self.gap:.2g}{limit.get('gap', '')} where the largest is "
            f"{self.scale:.3g}, mean divergence {self.divergence:.2g} nats{limit.get('divergence', '')}, same most "
            f"likely token at {100 * self.same_token:.1f}% of the positions"
        )


def probes_for(run: SavedRun, tokenizer: Any) -> Probes:
    """Rows of the run's training data where they can be found, a conversation in its template, random tokens.

    The random row ends with the last 16 ids of the vocabulary, where tokens that were added stand.
    """
    rows: list[tuple[int, ...]] = []
    told = []
    try:
        from sftcore.tools.saved_rows import rows_of_run

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
    what: str,
    wanted: Sequence[torch.Tensor],
    found: Sequence[torch.Tensor],
    *,
    measure: Literal["gap", "divergence"] = "gap",
    most: float | None = None,
) -> Agreement:
    """How far `found` is from `wanted`, each as from `logits_of`, and whether that is at most `most`."""
    import torch

    one, other = torch.cat(list(wanted)), torch.cat(list(found))
    return Agreement(
        what,
        float((one - other).abs().max()),
        float(one.abs().max()),
        float(_divergence(one, other).mean().clamp(min=0)),
        float((one.argmax(-1) == other.argmax(-1)).float().mean()),
        measure,
        most,
    )


def _divergence(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of `other` from `one` at each position: (tokens, vocabulary) to (tokens,)."""
    wanted, found = one.log_softmax(-1), other.log_softmax(-1)
    return (wanted.exp() * (wanted - found)).sum(-1)
