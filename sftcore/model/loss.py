"""The loss of a run's plugin, whose every answer is looked at."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from sftcore.core.registry import ActivePlugins
from sftcore.core.types import LoadedModel, LossFunction, LossOutput, Plan


def loss_of(plugins: ActivePlugins, loaded: LoadedModel, plan: Plan) -> LossFunction:
    """The loss function of the plugin that answers for it."""
    made: LossFunction = plugins.one("make_loss", loaded=loaded, plan=plan)
    return evolve(made, also=wrong_output)  # type: ignore[misc]


def wrong_output(output: LossOutput, hidden: Any, *_: Any) -> str:
    """What is wrong with the answer of a loss function: its shape, its type, or no gradients; "" if nothing is."""
    import torch

    parts = {"loss": output.loss, "entropy": output.entropy, "correct": output.correct}
    for name, value in parts.items():
        if value is None and name == "entropy":
            continue
        if not isinstance(value, torch.Tensor):
            return f"returned {type(value).__name__} as LossOutput.{name}; expected a tensor"
        if value.shape != ():
            return f"returned LossOutput.{name} of shape {tuple(value.shape)}; expected a scalar, of shape ()"
    per_token = output.per_token
    if per_token is not None and getattr(per_token, "shape", None) != hidden.shape[:1]:
        found = getattr(per_token, "shape", None)
        got = type(per_token).__name__ if found is None else f"shape {tuple(found)}"
        return f"returned LossOutput.per_token as {got}; expected the loss of each of {len(hidden)} tokens, or None"
    if not output.loss.is_floating_point():
        return f"returned LossOutput.loss as {output.loss.dtype}; expected float32"
    if torch.is_grad_enabled() and hidden.requires_grad and not output.loss.requires_grad:
        return "returned LossOutput.loss without gradients (detached); nothing would be trained"
    return ""
