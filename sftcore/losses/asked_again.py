"""Whether a loss must be differentiable as any other: twice, again, or under a transform of `torch.func`.

A training step needs one gradient, once, and `head_gradient` computes it in the forward pass. Who calls the loss for
other ends gets what torch gives for plain operations.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Asked(threading.local):
    """By thread, because torch runs backward passes of a GPU in threads of its own."""

    again = False
    plain = False


_asked = _Asked()


@contextmanager
def asked_again(wanted: bool = True) -> Iterator[None]:
    """Losses computed inside can be differentiated again, and their gradients too; hidden states are kept for it."""
    before, _asked.again = _asked.again, wanted
    try:
        yield
    finally:
        _asked.again = before


def may_be_asked_again() -> bool:
    """Whether `asked_again` is around."""
    return _asked.again


@contextmanager
def plain_operations() -> Iterator[None]:
    """Inside, functions with a gradient of their own are made of torch's operations."""
    before, _asked.plain = _asked.plain, True
    try:
        yield
    finally:
        _asked.plain = before


def asked_plainly() -> bool:
    """Whether `plain_operations` is around, or a transform that takes no gradient of our own."""
    return _asked.plain or is_transformed()


def is_transformed() -> bool:
    """Whether a transform of `torch.func` (grad, vmap, jvp) or forward-mode differentiation is at work."""
    import torch
    from torch.autograd import forward_ad

    functorch: Any = getattr(torch._C, "_are_functorch_transforms_active", None)
    level: int = getattr(forward_ad, "_current_level", -1)
    return level >= 0 or (functorch is not None and bool(functorch()))
