"""The call of the model in which a loss is computed, for losses that need more than hidden states and labels.

A teacher's, for one: it is called with what the model was called with, and gathered at the same positions.

Shapes: B rows, T tokens, N supervised positions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

if TYPE_CHECKING:
    import torch


@frozen
class LossCall:
    """What a loss function may ask about the call in which it computes.

    inputs: the arguments that the model was called with: input_ids (B, T), and attention_mask or position_ids and
    whatever keeps documents apart; gather: from (B, T, ...) to (N, ...), the positions of the loss's hidden states, in
    their order.
    """

    inputs: Mapping[str, Any]
    gather: Callable[[torch.Tensor], torch.Tensor]


class _Now(threading.local):
    call: LossCall | None = None


_now = _Now()


def loss_call() -> LossCall:
    """The call in which a loss function is computing. Ask within the loss, and not within what it differentiates.

    Raises:
        RuntimeError: no model is called, as where a loss is tried by itself.
    """
    if _now.call is None:
        raise RuntimeError("loss_call() is asked outside a call of the model, in which a loss is computed")
    return _now.call


@contextmanager
def computing(call: LossCall) -> Iterator[None]:
    """Around a call of the loss."""
    before, _now.call = _now.call, call
    try:
        yield
    finally:
        _now.call = before


@contextmanager
def at_places(places: Sequence[int]) -> Iterator[None]:
    """Inside, the loss is given these of the call's positions, as a trial does: fewer, or some of them twice."""
    call = _now.call
    if call is None:
        yield
        return
    with computing(evolve(call, gather=lambda states: call.gather(states)[list(places)])):
        yield
