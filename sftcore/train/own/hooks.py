"""Hooks of the user's on the head and around it, which are to see what a plain forward and backward pass shows.

The head is called on supervised positions only, in chunks, and computes its gradient in the forward pass. A hook on its
module, or on the model's output, would see chunks; so where there is one, the model's own forward builds all logits.

Hooks of libraries (of what shards, places or records a model) are part of the model, and are left alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sftcore.model.unwrap import is_peft_model

if TYPE_CHECKING:
    import torch

_LIBRARIES = frozenset({"torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes"})
_ON_MODULES = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
}
_ON_OUTPUTS = ("_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_PER_SAMPLE = "opacus"


def hook_on_logits(model: Any, causal: Any) -> str:
    """A hook that is to see all logits, in words; "" where there is none.

    Args:
        model: as training calls it.
        causal: the causal model in it.
    """
    from torch.nn.modules import module as globally

    for attribute, what in _ON_MODULES.items():
        if _of_user(getattr(globally, f"_global{attribute}")):
            return f"a {what} on all modules"
    head = causal.get_output_embeddings()
    for inner in head.modules() if head is not None else ():
        for attribute, what in _ON_MODULES.items():
            if _of_user(getattr(inner, attribute)):
                return f"a {what} on the head"
    for outer in _around(model, causal):
        for attribute in _ON_OUTPUTS:
            if _of_user(getattr(outer, attribute)):
                return f"a {_ON_MODULES[attribute]} on {type(outer).__name__}"
    return ""


def hook_on_gradient(causal: Any) -> str:
    """A parameter that trains in the head and whose gradient a hook is to see, in words; "" where there is none."""
    head = causal.get_output_embeddings()
    for name, one in head.named_parameters() if head is not None else ():
        if one.requires_grad and one._backward_hooks:
            return f"a hook on the head's {name}"
    return ""


def hook_lost_in_shards(model: torch.nn.Module) -> str:
    """A hook on a parameter that FSDP 2 would never call, in words; "" where there is none.

    FSDP 2 puts a shard in the place of each parameter. It writes the gradient of a shard itself, and then calls no hook
    but those of `register_post_accumulate_grad_hook` that hang on the shard.
    """
    for name, one in model.named_parameters():
        is_shard = hasattr(one, "full_tensor")
        lost = {"register_hook": one._backward_hooks}
        if not is_shard:
            lost["register_post_accumulate_grad_hook"] = getattr(one, "_post_accumulate_grad_hooks", None)
        for registered, hooks in lost.items():
            if one.requires_grad and hooks and _of_user(hooks):
                return f"the hook of {registered} on {name}"
    return ""


@contextmanager
def gradient_hooks_paused(model: torch.nn.Module) -> Iterator[None]:
    """Inside, gradients that are not a step's reach no hook of the user's."""
    held: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
    hooked = [*model.parameters(), *model.modules()]
    for hooks in (getattr(one, name, None) for one in hooked for name in ("_backward_hooks", "_backward_pre_hooks")):
        if hooks and any(_of_user(hooks)):
            held.append((hooks, dict(hooks)))
            hooks.clear()
    try:
        yield
    finally:
        for hooks, before in held:
            added = dict(hooks)
            hooks.clear()
            hooks.update({**before, **added})


def per_sample_wrapper(model: Any, optimizer: Any = None) -> str:
    """What takes a gradient for every sample, as differential privacy does; "" where nothing does."""
    if optimizer is not None and (name := _kind_of(optimizer)):
        return name
    if name := _kind_of(model):
        return name
    if isinstance(model, type) or not hasattr(model, "modules"):
        return ""
    for inner in model.modules():
        for attribute in _ON_MODULES:
            if any(_package(hook) == _PER_SAMPLE for hook in getattr(inner, attribute, {}).values()):
                return f"a hook of Opacus on {type(inner).__name__}"
    return next(("grad_sample of a parameter" for one in model.parameters() if hasattr(one, "grad_sample")), "")


def _kind_of(given: Any) -> str:
    kinds = [kind for kind in type(given).__mro__ if kind.__module__.partition(".")[0] == _PER_SAMPLE]
    return f"{type(given).__name__} of Opacus" if kinds else ""


def _around(model: Any, causal: Any) -> Iterator[Any]:
    """The modules whose outputs are the causal model's: itself, and what is wrapped around it."""
    yield causal
    outer = model
    while outer is not causal and hasattr(outer, "_forward_hooks"):
        yield outer
        if is_peft_model(outer):
            if outer.base_model is not causal:
                yield outer.base_model
            return
        outer = getattr(outer, "module", None)


def _of_user(hooks: Mapping[Any, Any]) -> list[Any]:
    return [hook for hook in hooks.values() if not _of_library(hook)] if hooks else []


def _of_library(hook: Any) -> bool:
    package = _package(hook)
    return package in _LIBRARIES or package.startswith("sftcore")


def _package(hook: Any) -> str:
    """The top-level package of a hook's function."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    function = getattr(hook, "__func__", hook)
    return str(getattr(function, "__module__", None) or "").partition(".")[0]
