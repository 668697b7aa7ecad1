"""The loss bound inside the model's own forward, where the head sees supervised positions only.

It is bound before PEFT, DDP or FSDP wrap the model, and only answers a call that carries `NUM_ITEMS`; every other call
(generation, a user's own) goes to the model's own forward untouched. See DESIGN, decision 3, in docs/architecture.md.

Shapes: B rows, T tokens, W width, V vocabulary, N supervised positions.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import frozen

from sftcore.core.types import IGNORED, LossFunction, LossOutput
from sftcore.model.embeddings import num_rows
from sftcore.model.zero import callable_in_parts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NUM_ITEMS = "sft_num_items"
"""The keyword argument that asks the model's forward for the loss: the normaliser, a scalar."""
WEIGHTS = "sft_weights"
"""The keyword argument with the tokens' weights: (B, T) float32."""


@frozen
class BoundLoss:
    """How a loss is bound: `gathers` says that the head sees supervised positions only; else `reason` says why not."""

    gathers: bool
    reason: str


def bind_loss(model: PreTrainedModel, loss: LossFunction) -> BoundLoss:
    """Bind `loss` to the causal model's forward.

    Called with `NUM_ITEMS`, the forward returns a dict of scalars: loss, entropy and correct as in `LossOutput`,
    supervised (how many tokens counted), and aux_loss where the model balances the load of its experts.

    The head is applied to gathered hidden states where the result equals the model's own logits, which is tried on a
    few tokens here; otherwise the model's own forward builds all logits and the loss gathers those.
    """
    head, balance = Head(model), _balance_of(model)
    reason = _why_not(model, head, balance)
    original = model.forward

    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        if NUM_ITEMS not in kwargs:
            return original(*args, **kwargs)
        num_items, weights, labels = kwargs.pop(NUM_ITEMS), kwargs.pop(WEIGHTS, None), kwargs.pop("labels")
        outputs = original(*args, **kwargs) if reason else self.base_model(*args, **kwargs)
        states, apply = (outputs.logits, _identity) if reason else (outputs[0], head)
        found = gathered_loss(loss, states, apply, labels, weights, num_items)
        aux_loss = getattr(outputs, "aux_loss", None) if reason or balance is None else balance(outputs, kwargs)
        return found if aux_loss is None else {**found, "aux_loss": aux_loss}

    # accelerate unwraps forwards down to the last __wrapped__ and binds what it finds there to the model again, so this
    # one must be a method without __wrapped__; transformers and PEFT read the signature to see which arguments count
    own = inspect.signature(original)
    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = own.replace(parameters=[me, *own.parameters.values()])  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)
    return BoundLoss(not reason, reason)


def gathered_loss(
    loss: LossFunction,
    states_BTW: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    labels_BT: torch.Tensor,
    weights_BT: torch.Tensor | None,
    num_items: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Shift, gather the positions whose next token counts, and ask the loss."""
    targets_BT = labels_BT[:, 1:]
    counts_BT = targets_BT != IGNORED
    weights_N = None
    if weights_BT is not None:
        # virtual tokens of prompt learning stand in front of the row; the labels have them already
        missing = labels_BT.shape[1] - weights_BT.shape[1]
        shifted_BT = weights_BT.new_zeros(labels_BT.shape)
        shifted_BT[:, missing:] = weights_BT
        counts_BT = counts_BT & (shifted_BT[:, 1:] > 0)
        weights_N = shifted_BT[:, 1:][counts_BT]
    states_NW = states_BTW[:, :-1][counts_BT.to(states_BTW.device)]
    output: LossOutput = loss(states_NW, head, targets_BT[counts_BT].to(states_NW.device), weights_N, num_items)
    return {
        "loss": output.loss,
        **({} if output.entropy is None else {"entropy": output.entropy.detach()}),
        "correct": output.correct.detach(),
        "supervised": counts_BT.sum(),
    }


class Head:
    """The model's output head as a function, with the scale and soft-cap that its configuration names.

    The head is called as a module, never by its weight, so that adapters on it, biases and quantised heads work.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        config = model.config.get_text_config()
        self._multiply = getattr(config, "logit_scale", None)
        self._divide = getattr(config, "logits_scaling", None)
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)

    @property
    def module(self) -> torch.nn.Module:
        """The head's module as it is now, with whatever an adapter has put around it."""
        found: torch.nn.Module = self._model.get_output_embeddings()
        return found

    @property
    def scale(self) -> float:
        """By what the module's output is multiplied before the soft-cap."""
        return (1.0 if self._multiply is None else self._multiply) / (1.0 if self._divide is None else self._divide)

    def __call__(self, states_NW: torch.Tensor) -> torch.Tensor:
        """(N, W) to (N, V)."""
        logits_NV: torch.Tensor = self.module(states_NW)
        if self._multiply is not None:
            logits_NV = logits_NV * self._multiply
        if self._divide is not None:
            logits_NV = logits_NV / self._divide
        if self.softcap is not None:
            logits_NV = (logits_NV / self.softcap).tanh() * self.softcap
        return logits_NV


Balance: TypeAlias = Callable[[Any, Mapping[str, Any]], "torch.Tensor | None"]
"""From the outputs of the base model and the arguments it got to the auxiliary loss of its experts, a scalar."""


def _balance_of(model: PreTrainedModel) -> Balance | None:
    """The auxiliary loss of a mixture of experts, computed as its own forward does; None where the run has none."""
    if not getattr(model.config.get_text_config(), "output_router_logits", False):
        return None
    compute: Any = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    experts = getattr(model, "num_experts", None), getattr(model, "num_experts_per_tok", None)

    def balance(outputs: Any, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
        mask = kwargs.get("attention_mask")
        # a mask between tokens, as packed rows may need, does not say which tokens are padding
        padding_mask = mask if getattr(mask, "ndim", 0) == 2 else None
        found: torch.Tensor = compute(outputs.router_logits, *experts, padding_mask)
        return found

    return balance


def _why_not(model: PreTrainedModel, head: Head, balance: Balance | None) -> str:
    """Why the head cannot be applied to gathered hidden states, or an empty string."""
    import torch

    if model.get_output_embeddings() is None or model.base_model is model:
        return "the model has no separate head"
    was_training = model.training
    ids = torch.arange(3, 19, device=model.device).remainder(num_rows(model))[None]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), callable_in_parts(model):
            whole, inner = (one(input_ids=ids, use_cache=False) for one in (model, model.base_model))
            wanted, got = whole.logits[0].float(), head(inner[0][0]).float()
            aux_losses = None if balance is None else (float(whole.aux_loss), float(balance(inner, {}) or 0))
    except (TypeError, RuntimeError, AttributeError, IndexError) as error:
        return f"its parts cannot be called one by one ({type(error).__name__}: {error})"
    finally:
        model.train(was_training)
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 2e-2
    gap = float((wanted - got).abs().max()) if wanted.shape == got.shape else float("inf")
    if not gap <= tolerance * max(1.0, float(wanted.abs().max())):
        return f"head and hidden states do not give the model's own logits (they differ by {gap:.2g})"
    if aux_losses is not None and abs(aux_losses[0] - aux_losses[1]) > tolerance * abs(aux_losses[0]):
        return f"its experts' auxiliary loss is {aux_losses[0]:.4g}, not {aux_losses[1]:.4g} as of their routers"
    return ""


def _identity(logits: torch.Tensor) -> torch.Tensor:
    return logits
