"""Compare the logits of two models on rows of the run's own data, on a conversation and on random tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from sftcore.core.errors import DataError
from sftcore.tools.saved import SavedRun

if TYPE_CHECKING:
    import torch

LENGTH = 64
"""How many tokens of each row are compared."""
_TRAINING_ROWS = 4
_CONVERSATION = [
    {"role": "user", "content": "Name three things that float, and say why the last one does."},
    {"role": "assistant", "content": "Wood, ice and a full bottle of oil: oil is lighter than the water it displaces."},
    {"role": "user", "content": "¿Y una piedra pómez? 42 × 3.5 = ?"},
]


@frozen
class ComparisonRows:
    """Rows of up to LENGTH token ids each, and a description of where they come from."""

    rows: tuple[tuple[int, ...], ...]
    description: str


@frozen
class Agreement:
    """How much the logits of two models differ, over all positions and tokens.

    gap: the largest difference of a logit; scale: the largest logit of the first model; divergence: the mean
    Kullback-Leibler divergence of the second model's next-token distribution from the first's, in nats; same_token: the
    share of positions at which both models have the same most likely token. `limit` bounds the gap or, in half
    precision, the divergence, because the largest gap among 49,152 logits is down to chance there. If `limit` is None,
    the figures are only reported.
    """

    what: str
    gap: float
    scale: float
    divergence: float
    same_token: float
    measure: Literal["gap", "divergence"] = "gap"
    limit: float | None = None

    @property
    def within_limit(self) -> bool:
        """Whether the figure is within its limit; NaN never is."""
        return self.limit is None or getattr(self, self.measure) <= self.limit

    def __str__(self) -> str:
        limit = {self.measure: "" if self.limit is None else f" (limit {self.limit:.2g})"}
        return (
            f"{self.what}: logits differ by up to {self.gap:.2g}{limit.get('gap', '')}, where the largest logit is "
            f"{self.scale:.3g}; mean divergence {self.divergence:.2g} nats{limit.get('divergence', '')}; "
            f"the most likely token is the same at {100 * self.same_token:.1f}% of positions"
        )


def comparison_rows(run: SavedRun, tokenizer: Any) -> ComparisonRows:
    """Rows of the run's training data if they can be read, a conversation in its template, and random tokens.

    The random row ends with the last 16 ids of the vocabulary, which is where added tokens are.
    """
    rows: list[tuple[int, ...]] = []
    sources = []
    try:
        from sftcore.tools.saved_rows import rows_of_run

        found = rows_of_run(run, tokenizer, _TRAINING_ROWS, max_length=LENGTH)
        rows += [tuple(row.input_ids) for row in found.rows]
        sources.append(f"{len(found.rows)} rows of the training data")
    except DataError:
        pass  # a run from Python does not record its data, and neither does an adapter from elsewhere
    if getattr(tokenizer, "chat_template", None):
        encoded = tokenizer.apply_chat_template(_CONVERSATION, add_generation_prompt=True, return_dict=True)
        rows.append(tuple(encoded["input_ids"])[:LENGTH])
        sources.append("a conversation")
    last = range(max(len(tokenizer) - 16, 0), len(tokenizer))
    draw = random.Random(0)
    rows.append((*(draw.randrange(len(tokenizer)) for _ in range(LENGTH - len(last))), *last))
    sources.append("random tokens")
    return ComparisonRows(tuple(rows), f"{', '.join(sources[:-1])} and {sources[-1]}" if sources[1:] else sources[0])


def logits_of(model: Any, compared_on: ComparisonRows) -> list[torch.Tensor]:
    """The model's logits for each row: float32 tensors of (tokens, vocabulary) on the CPU."""
    import torch

    model.eval()
    with torch.inference_mode():
        return [
            model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0].float().cpu()
            for row in compared_on.rows
        ]


def compare_logits(
    what: str,
    wanted: Sequence[torch.Tensor],
    found: Sequence[torch.Tensor],
    *,
    measure: Literal["gap", "divergence"] = "gap",
    limit: float | None = None,
) -> Agreement:
    """How much `found` differs from `wanted`, both as `logits_of` returns them; `limit` bounds `measure`."""
    import torch

    one, other = torch.cat(list(wanted)), torch.cat(list(found))
    divergence = torch.nn.functional.kl_div(
        other.log_softmax(-1), one.log_softmax(-1), reduction="batchmean", log_target=True
    )
    return Agreement(
        what,
        float((one - other).abs().max()),
        float(one.abs().max()),
        float(divergence.clamp(min=0)),
        float((one.argmax(-1) == other.argmax(-1)).float().mean()),
        measure,
        limit,
    )
