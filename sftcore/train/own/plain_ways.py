"""Where somebody looks at what the fast way does not show, the plain way is taken, and said once with its cost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from sftcore.core.visible import visible
from sftcore.model.embeddings import num_rows
from sftcore.train.own.hooks import hook_on_gradient, hook_on_logits


class PlainWays:
    """Decides for each call of the model whether it builds all logits.

    Args:
        note: keeps what is said with the run.
        says: whether this process prints it.
    """

    def __init__(self, note: Callable[[str], None], *, says: bool) -> None:
        self._note, self._says = note, says
        self._said: set[str] = set()

    def builds_logits(self, model: Any, causal: Any, inputs: Mapping[str, Any], *, asked: str) -> bool:
        """Whether the model's own forward is called, whose outputs hold all logits.

        Args:
            model: as it is wrapped; `causal` is the causal model in it.
            inputs: the batch.
            asked: who wants the outputs, of a batch that is trained on; "" where nobody does.
        """
        hook = hook_on_logits(model, causal)
        why = hook or asked
        if why and why not in self._said:
            rows, tokens = inputs["labels"].shape
            vocabulary = num_rows(causal)
            size = 4 * rows * tokens * vocabulary / 2**20
            self._say(
                why,
                f"the forward pass builds all logits, {rows} x {tokens} x {vocabulary:,} ({size:,.1f} MiB in float32)",
            )
        if (hooked := hook_on_gradient(causal)) and hooked not in self._said:
            self._say(
                hooked, "so that it sees one whole gradient, the head is computed a second time in the backward pass"
            )
        return bool(why)

    def _say(self, why: str, cost: str) -> None:
        self._said.add(why)
        self._note(f"{why}: {cost}")
        if self._says:
            print(visible(f"note       {why}: {cost}"), file=sys.stderr)
