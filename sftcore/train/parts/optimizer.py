"""The optimizer of a run, whoever made it: compared with what trains, and put on master copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sftcore.core.errors import ConflictError, ModelError
from sftcore.model.precision import add_master_weights, wants_master_weights
from sftcore.util.warned import warn

_COPIED = "_sftcore_copied"
"""The attribute of an optimizer that steps on master copies: by the id of a copy, the parameter that it belongs to."""


def fit_optimizer(optimizer: Any, model: Any, settings: Mapping[str, Any], *, own: bool) -> None:
    """Make an optimizer ready for a model that is not sharded; what was made ready before is left as it is.

    Args:
        optimizer: transformers' or the user's, also as accelerate has wrapped it.
        model: what trains, nothing around it but an adapter.
        settings: of the run, which say whether there are master copies.
        own: whether the run itself made it, from all that trains.

    Raises:
        ConflictError: it would train nothing, or cannot step on the master copies that the plan speaks of.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    if not hasattr(optimizer, "param_groups"):
        return
    if not own:
        _compare(optimizer, model)
    if hasattr(optimizer, _COPIED) or not wants_master_weights(model, settings):
        return
    before = _held(optimizer)
    _add_copies(optimizer, own=own)
    pairs = zip(_held(optimizer), before, strict=True)
    setattr(optimizer, _COPIED, {id(copied): parameter for copied, parameter in pairs if copied is not parameter})


def _held(optimizer: Any) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _add_copies(optimizer: Any, *, own: bool) -> None:
    try:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ModelError(f"{type(optimizer).__name__} is not an optimizer of torch's, and cannot use copies.")
        add_master_weights(optimizer)
    except ModelError as error:
        if own:
            raise
        raise ConflictError(
            f"the run steps on float32 master copies: {error.what}",
            where="optimizers",
            fix="Set master_weights: false, or pass an optimizer that has no state yet.",
        ) from error


def _compare(optimizer: Any, model: Any) -> None:
    """Compare what an optimizer holds with what trains.

    Raises:
        ConflictError: none of it trains, or it holds what a parameter was before it was replaced.
    """
    copied: Mapping[int, torch.Tensor] = getattr(optimizer, _COPIED, {})
    held = [copied.get(id(one), one) for one in _held(optimizer)]
    known = {id(one): name for name, one in model.named_parameters()}
    trained = {id(one): (known[id(one)], one) for one in model.parameters() if one.requires_grad}
    in_groups = {id(one) for one in held}
    foreign = [one for one in held if id(one) not in known]
    left_out = [found for key, found in trained.items() if key not in in_groups]
    kind, plural = type(optimizer).__name__, "s" if len(held) > 1 else ""
    if len(left_out) == len(trained):
        if len(foreign) == len(held) and not type(optimizer).__module__.startswith("torch."):
            warn(
                f"optimizers: {kind} holds {len(held)} parameter{plural}, and none of them is in the model. This "
                "trains it only where the optimizer keeps copies, and writes them back itself."
            )
            return
        which = f"{len(foreign)} of them are not in the model" if foreign else "all of them are frozen"
        raise ConflictError(
            f"{kind} holds {len(held)} parameter{plural}, and none of them trains: {which}.",
            where="optimizers",
            fix=(
                "Make it from what trains once an adapter is on (get_peft_model before the optimizer), pass "
                "optimizer_cls_and_kwargs, or override create_optimizer."
            ),
        )
    for name, parameter in left_out:
        shapes = [one.shape[1:] for one in foreign if one.ndim > 1]
        if parameter.ndim > 1 and parameter.shape[1:] in shapes:
            raise ConflictError(
                f"{kind} does not hold {name}, but a parameter like it that is not in the model: it was replaced after "
                "the optimizer was made, as embeddings are that grow.",
                where="optimizers",
                fix="Make the optimizer afterwards, pass optimizer_cls_and_kwargs, or override create_optimizer.",
            )
    if left_out:
        warn(
            f"optimizers: {len(left_out)} of the {len(trained)} parameters that train, such as {left_out[0][0]}, are "
            f"in no group of {kind} and stay as they are. If that is meant, freeze them (requires_grad_(False)), which "
            "saves their gradients."
        )
