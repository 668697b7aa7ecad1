"""How two ways of computing the same are compared, how much they may differ, and a model made comparable.

The self-test and the trials of plugins measure by these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore.model.precision import quantisation_of
from sftcore.model.products.digits import multiplies_in_tf32
from sftcore.model.unwrap import causal_model

if TYPE_CHECKING:
    import torch

TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Allowed relative difference of the loss, and of all gradients as one vector, for the coarsest dtype in use."""
TF32_TOLERANCE = 1e-2
"""The same for float32 on an accelerator that is set to multiply in TF32."""
EIGHT_BITS_TOLERANCE = 2e-1
"""The same for 8-bit bases, whose products are scaled by the tokens that are multiplied together."""
WORST = 10
"""How many times the tolerance one parameter may differ, since its gradient may be a small difference of large ones."""
FLOOR = 1e-3
"""A gradient smaller than this fraction of the largest one is compared with that fraction: it is mostly rounding."""


@frozen
class Measured:
    """A loss, and the gradient of each trainable parameter by name; None if a parameter has no gradient."""

    loss: float
    gradients: Mapping[str, torch.Tensor | None]


@frozen
class Gap:
    """The relative differences of one `Measured` from another: in loss, in all gradients and in the worst parameter."""

    loss: float
    gradient: float
    worst: float
    worst_parameter: str

    def within(self, tolerance: float) -> bool:
        """Whether all differences are allowed; NaN never is."""
        return self.loss <= tolerance and self.gradient <= tolerance and self.worst <= WORST * tolerance


def gap_between(got: Measured, wanted: Measured) -> Gap:
    """How much `got` differs from `wanted`, relative to `wanted` and computed in float32."""
    norms = {name: 0.0 if one is None else float(one.float().norm()) for name, one in wanted.gradients.items()}
    floor = FLOOR * max(norms.values(), default=0.0)
    off: dict[str, float] = {}
    for name, one in wanted.gradients.items():
        other = got.gradients.get(name)
        if one is None or other is None:
            off[name] = norms[name] if other is None else float(other.float().norm())
        else:
            off[name] = float((other.float().to(one.device) - one.float()).norm())
    parts = {name: _ratio(off[name], max(norms[name], floor)) for name in norms}
    worst = max(parts, key=lambda name: math.inf if math.isnan(parts[name]) else parts[name])
    return Gap(
        _ratio(abs(got.loss - wanted.loss), abs(wanted.loss)),
        _ratio(math.hypot(*off.values()), math.hypot(*norms.values())),
        parts[worst],
        worst,
    )


def tolerance_of(model: Any, autocast: str | None) -> tuple[float, str]:
    """The tolerance for this model, and its reason: the coarsest dtype among its parameters and the autocast."""
    quantised = quantisation_of(model)
    if quantised and getattr(causal_model(model), "is_loaded_in_8bit", False):
        return EIGHT_BITS_TOLERANCE, f"{quantised}"
    kinds = {str(one.dtype).removeprefix("torch.") for one in model.parameters() if one.is_floating_point()}
    names = {name for name in (*kinds, autocast) if name in TOLERANCES} or {"float32"}
    coarsest = max(names, key=lambda name: TOLERANCES[name])
    spelled = f"{coarsest} with a base of {quantised}" if quantised else coarsest
    on_accelerator = next(model.parameters()).device.type != "cpu"
    if coarsest == "float32" and on_accelerator and multiplies_in_tf32():
        return TF32_TOLERANCE, f"{spelled}, multiplied in TF32"
    return TOLERANCES[coarsest], spelled


def take_gradients(model: Any, scale: float = 1.0) -> dict[str, torch.Tensor | None]:
    """Remove the gradients from the model, and return those of its trainable parameters divided by `scale`."""
    found = {name: one.grad for name, one in model.named_parameters() if one.requires_grad}
    for one in model.parameters():
        one.grad = None
    return found if scale == 1 else {name: None if one is None else one / scale for name, one in found.items()}


# --- Making a model comparable ----------------------------------------------------------------------------------------
@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Set every dropout and jitter rate to 0 inside, so that nothing is random, without leaving training mode."""
    changed: list[tuple[Any, str, Any]] = []
    for module in model.modules():
        is_dropout = "dropout" in type(module).__name__.lower()
        for name, value in list(vars(module).items()):
            rate = ("drop" in name or "jitter" in name or (is_dropout and name == "p")) and isinstance(value, float)
            if rate and value:
                changed.append((module, name, value))
                setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


@contextmanager
def with_attention(model: Any, implementation: str | None) -> Iterator[None]:
    """Use another attention inside, by its name in transformers' registry; None changes nothing."""
    causal = causal_model(model)
    before = causal.config.get_text_config()._attn_implementation
    if implementation is None or implementation == before:
        yield
        return
    causal.set_attn_implementation(implementation)
    try:
        yield
    finally:
        causal.set_attn_implementation(before)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch afterwards."""
    import random

    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.current_accelerator()
    with torch.random.fork_rng(device_type=accelerator.type if accelerator else "cuda"):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def weights_hash(model: Any) -> str:
    """A hash of every bit of the weights."""
    import hashlib

    import torch

    found = hashlib.blake2b()
    for name, one in model.state_dict(keep_vars=True).items():
        if isinstance(one, torch.Tensor) and one.device.type != "meta":
            found.update(name.encode())
            found.update(one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _ratio(part: float, whole: float) -> float:
    return 0.0 if part == 0 else part / whole if whole else math.inf
