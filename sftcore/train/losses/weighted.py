"""Weights of tokens where the plugin's loss does not compute the loss: smoothed labels, and a user's own function.

Shapes: B rows, T tokens, N supervised positions, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sftcore.core.errors import ConflictError
from sftcore.core.types import IGNORED

if TYPE_CHECKING:
    import torch

WEIGHTS = "weights"
"""The column of weights, and the argument of a user's loss function that takes them."""


def smoothed_loss(
    logits_BTV: torch.Tensor,
    labels_BT: torch.Tensor,
    weights_BT: torch.Tensor,
    num_items: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """Cross-entropy with labels smoothed by `epsilon`, each token times its weight, divided by `num_items`: a scalar.

    It is that of transformers' LabelSmoother where all weights are 1 (Szegedy et al. 2016, arXiv:1512.00567). Weights
    are aligned with labels.
    """
    import torch

    rows_N, columns_N = (labels_BT[:, 1:] != IGNORED).nonzero(as_tuple=True)
    losses_N = torch.nn.functional.cross_entropy(
        logits_BTV[rows_N, columns_N].float(),
        labels_BT[rows_N, columns_N + 1],
        reduction="none",
        label_smoothing=epsilon,
    )
    return (losses_N * weights_BT[rows_N, columns_N + 1]).sum() / num_items.clamp(min=1e-6)


def weights_for(function: Callable[..., Any], weights_BT: torch.Tensor | None) -> dict[str, Any]:
    """The argument `weights` of a user's loss function, where it has one.

    Raises:
        ConflictError: there are weights, and it takes none.
    """
    if takes_weights(function):
        return {WEIGHTS: weights_BT}
    if weights_BT is not None:
        raise _not_taken()
    return {}


def takes_weights(function: Callable[..., Any]) -> bool:
    """Whether a loss function has an argument of that name; what only collects arguments would not read it."""
    try:
        return WEIGHTS in inspect.signature(function).parameters
    except (TypeError, ValueError):  # it does not say what it takes
        return False


def refuse_unread_weights(function: Callable[..., Any] | None, sets: Iterable[Any]) -> None:
    """Refuse a user's loss function without weights beside rows with weights, as far as columns tell.

    Args:
        function: of the user, or None.
        sets: prepared data sets, mappings of several, or None.

    Raises:
        ConflictError: with what would take them.
    """
    every = [one for given in sets for one in (given.values() if isinstance(given, Mapping) else [given])]
    weighted = any(WEIGHTS in (getattr(one, "column_names", None) or ()) for one in every)
    if function is not None and weighted and not takes_weights(function):
        raise _not_taken()


def _not_taken() -> ConflictError:
    return ConflictError(
        "the rows have weights, and compute_loss_func takes no weights: they would divide the loss and multiply "
        "nothing.",
        where="compute_loss_func",
        fix="Give it an argument `weights` ((B, T), aligned with labels, None in a batch without any), or drop the "
        "column.",
    )
