"""Mixtures of experts: whether a run balances their load, and by how much."""

from __future__ import annotations

from typing import Any

from sftcore.core.errors import ConflictError


def balance_experts(model: Any, coefficient: float | None) -> tuple[float, bool]:
    """The weight of the auxiliary loss, and whether the run has one; the model's configuration is set to it.

    Args:
        model: whose configuration may name a coefficient of its own.
        coefficient: what the run asks for; None for the model's own, 0 for none.

    Raises:
        ConflictError: the run asks for it, and the model has no experts.
    """
    config = model.config.get_text_config()
    # Doge's configuration is that of a dense model, too
    has_experts = hasattr(config, "output_router_logits") and getattr(config, "is_moe", True)
    if coefficient and not has_experts:
        raise ConflictError(
            f"router_aux_loss_coef is {coefficient}, and {type(model).__name__} has no experts to balance.",
            fix="Remove router_aux_loss_coef.",
        )
    weight = getattr(config, "router_aux_loss_coef", 0.0) if coefficient is None else coefficient
    enabled = has_experts and bool(weight)
    if has_experts:
        config.output_router_logits = enabled
    return weight, enabled
