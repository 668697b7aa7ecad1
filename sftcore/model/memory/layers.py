"""The layers of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that transformers can checkpoint one by one, the outermost where they are nested."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: dict[str, torch.nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer) and not any(name.startswith(f"{one}.") for one in found):
            found[name] = module
    return list(found.values())
