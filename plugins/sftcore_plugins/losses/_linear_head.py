"""The head of a model for kernels that read its weight themselves, as fused losses do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sftcore import ModelError

if TYPE_CHECKING:
    import torch

HEADS = ("lm_head", "embed_out", "output")
"""What models call the module whose weight the fused kernel reads."""


def plain_linear(module: torch.nn.Module, *, loss: str, fix: str) -> torch.nn.Linear:
    """The linear layer that computes the head: itself, or the copy of it that an adapter trains whole.

    Raises:
        ModelError: its weight alone does not say what it computes: an adapter, few bits, shards, hooks.
    """
    import torch

    copies = getattr(module, "modules_to_save", None)
    if copies is not None and not getattr(module, "disable_adapters", False):
        active = getattr(module, "active_adapter", "default")
        module = copies[active if isinstance(active, str) else active[0]]
    weight: Any = getattr(module, "weight", None)
    hooked = bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)
    if type(module) is not torch.nn.Linear or type(weight) is not torch.nn.Parameter or weight.dim() != 2 or hooked:
        what = f"{type(module).__module__}.{type(module).__qualname__}"
        kept = f" with a {type(weight).__name__}" if type(weight) is not torch.nn.Parameter else ""
        raise ModelError(
            f'loss "{loss}": the head is a {what}{kept}{" with hooks" if hooked else ""}, and the fused kernel reads '
            "the weight of a plain linear layer.",
            fix=fix,
        )
    return module


def adapted_head(options: Mapping[str, Any]) -> str | None:
    """The head's name among the modules that an adapter goes into, where they are listed."""
    config = options.get("config")
    targets = options.get("target_modules") or getattr(config, "target_modules", None)
    names = [targets] if isinstance(targets, str) else list(targets or ())
    return next((name for name in names if str(name).rpartition(".")[2] in HEADS), None)
