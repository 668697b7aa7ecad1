"""Try what users pass in beside plugins, a `data_collator` and a `compute_loss_func`: what cannot be meant is refused.

Both may do as their author likes: a collator may mask more than its rows, and a loss need not be a sum over tokens.
Only what no run can train on is a fault, and the rest is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftcore.core.types import IGNORED
from sftcore.data.collate import wrong_batch
from sftcore.trials.collator import SHIFTED, try_collator
from sftcore.trials.outcome import PASSED, Outcome

if TYPE_CHECKING:
    import torch


def try_own_collator(collate: Callable[..., Any], rows: Sequence[Mapping[str, Any]]) -> Outcome:
    """A user's collator on prepared rows with `input_ids`; what it raises is left for the run to raise."""
    try:
        batch = collate([dict(row) for row in rows])
        fault = wrong_batch(batch)
        found = Outcome() if fault else try_collator(collate, rows)
    except Exception:  # it may want rows of its own shape
        return PASSED
    if fault:
        return Outcome(fault)
    given = [row["input_ids"] if row.get("labels") is None else row["labels"] for row in rows]
    if not bool((batch["labels"] != IGNORED).any()) and any(one != IGNORED for labels in given for one in labels):
        return Outcome(f"gives labels that are all {IGNORED} for rows with supervised tokens: nothing would be trained")
    if found.fault.startswith(SHIFTED):
        return Outcome(f"gives labels that are{found.fault.removeprefix('its labels are')}")
    return Outcome(notes=(f"changes what its rows say: {found.fault}",) if found.fault else ())


def try_own_loss(function: Callable[..., Any], outputs: Any, labels_BT: torch.Tensor, *, adds_up: bool) -> Outcome:
    """A user's loss function on the outputs of one forward pass without gradients, whose logits are (B, T, V).

    Args:
        adds_up: whether the losses of several micro-batches or processes are added up in a step.
    """
    import torch

    items = float((labels_BT[:, 1:] != IGNORED).sum())

    def value(factor: float) -> tuple[torch.Tensor, Any]:
        outputs.logits = outputs.logits.detach().requires_grad_()
        count = torch.full((), factor * items, device=labels_BT.device)
        with torch.enable_grad():
            return outputs.logits, function(outputs, labels_BT, num_items_in_batch=count)

    try:
        logits, loss = value(1.0)
    except Exception:  # it may read of the outputs what a run gives and a trial does not
        return PASSED
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        return Outcome(f"gives a loss that is not a scalar tensor but {what}")
    if not loss.requires_grad:
        return Outcome("gives a loss without a gradient, so that nothing would be trained")
    notes = []
    (gradient,) = torch.autograd.grad(loss, logits, allow_unused=True)
    if gradient is not None and bool(gradient[:, -1].any()):
        notes.append("reads the logits of the last token, which predict nothing: are its labels shifted by one?")
    whole, halved = float(loss.detach()), float(value(2.0)[1].detach()) if adds_up else 0.0
    if adds_up and not abs(2 * halved - whole) <= 2e-2 * abs(whole):
        notes.append(
            "does not halve where num_items_in_batch doubles, so that accumulation and processes change a step"
        )
    return Outcome(notes=tuple(notes))
