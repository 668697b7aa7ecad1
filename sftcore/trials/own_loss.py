"""Compare the loss that a model's own forward computes with cross-entropy on its own logits, on a few tokens.

A `loss_function` that was set on the model, or a class that adds a term, would otherwise be replaced without a word.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore.core.types import IGNORED
from sftcore.documents.proof import code_token_ids, ordinary_token_ids
from sftcore.trials.passes import as_trained

if TYPE_CHECKING:
    import torch

TOKENS, PROMPT = 16, 5
"""The tokens of the trial, and how many of them are a prompt, whose labels are ignored."""
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2
"""Allowed relative differences of a loss in float32, and of one in half precision."""


@frozen
class OwnLossFound:
    """What a model computes as its loss, and the cross-entropy of its own logits: means over the same tokens."""

    own: float
    cross_entropy: float
    tolerance: float
    function: str
    """The name of a loss function that was set on the model; empty where it has that of its class."""
    of_transformers: bool
    """Whether nobody has changed what transformers' own class computes."""

    @property
    def differs(self) -> bool:
        """Whether it is another loss; one that is NaN on ordinary tokens is."""
        return not abs(self.own - self.cross_entropy) <= self.tolerance * max(1.0, abs(self.cross_entropy))


def own_loss_of(model: Any, causal: Any, device: torch.device) -> OwnLossFound | None:
    """The two losses, from one forward pass as it trains, without gradients; None where it computes no loss.

    Args:
        model: what is called, as it is wrapped; all processes call it together.
        causal: the causal model in it.
        device: where its inputs are.
    """
    import torch

    known = ordinary_token_ids(causal.config)
    vocabulary = causal.config.get_text_config().vocab_size  # embeddings that an adapter wraps do not always say it
    ids = torch.tensor([[known[place * len(known) // TOKENS] for place in range(TOKENS)]], device=device)
    # any token that is said may be a label, also those that a loss may treat in a way of their own
    unsaid = code_token_ids(causal.config)
    places = [place * vocabulary // TOKENS for place in range(TOKENS)]
    labels = torch.tensor([[known[0] if one in unsaid else one for one in places]], device=device)
    end = getattr(causal.generation_config, "eos_token_id", None)
    labels[0, -1] = end if isinstance(end, int) and end < vocabulary else labels[0, -1]
    labels[0, :PROMPT] = IGNORED
    count = torch.tensor(float(TOKENS - PROMPT), device=device)
    asked = {"labels": labels, **({"num_items_in_batch": count} if takes_num_items(causal) else {})}
    try:
        with torch.no_grad(), as_trained(model):
            outputs = model(input_ids=ids, use_cache=False, **asked)
        own, logits_TV = outputs["loss"], outputs["logits"][0, -TOKENS:].float()
        balance = getattr(outputs, "aux_loss", None)
        coefficient = getattr(causal, "router_aux_loss_coef", 0.0) if balance is not None else 0.0
        plain = torch.nn.functional.cross_entropy(logits_TV[:-1], labels[0, 1:].to(logits_TV.device))
        found = float(own) - coefficient * float(0 if balance is None else balance)
    except Exception:  # a custom model may take no labels, return no loss or no logits, or ask for other inputs
        return None
    function = _function_of(causal)
    tolerance = TOLERANCE if own.dtype == torch.float32 else HALF_TOLERANCE
    return OwnLossFound(found, float(plain), tolerance, function, not function and _is_of_transformers(causal))


def takes_num_items(causal: Any) -> bool:
    """Whether a model's own loss is divided by what it is told, as transformers' Trainer decides it."""
    if hasattr(causal, "accepts_loss_kwargs"):
        return bool(causal.accepts_loss_kwargs)
    parameters = inspect.signature(causal.forward).parameters
    return "num_items_in_batch" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _function_of(causal: Any) -> str:
    """The name of a loss function that was set on this model, or its configuration, in the place of cross-entropy."""
    given = vars(causal).get("_loss_function") or vars(causal).get("loss_function")
    if given is None and getattr(causal.config, "loss_type", None):
        given = getattr(causal, "loss_function", None)
    if given is None or getattr(given, "__name__", "") == "ForCausalLMLoss":
        return ""
    return str(getattr(given, "__qualname__", type(given).__name__))


def _is_of_transformers(causal: Any) -> bool:
    """Whether the forward is one of transformers' own: not of a user's class, nor patched on a class or a model."""
    kept = vars(causal).get(
        "_original_forward", vars(causal).get("forward")
    )  # accelerate's forward keeps what it wraps
    ours = [type(causal), type(causal).forward, *([] if kept is None else [kept])]
    return all(str(getattr(one, "__module__", "")).startswith("transformers.") for one in ours)
