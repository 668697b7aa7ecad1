"""Whether a text passes all layers of a model: an adapter that goes around some of them makes another model of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sftcore.model.verify.base_kept import layers_of

if TYPE_CHECKING:
    import torch

_NOT_OF_TEXT = (
    "vision", "visual", "audio", "image", "video", "projector", "connector", "perceiver", "resampler", "vqmodel",
    "cross_attn",
)  # fmt: skip
"""What names of modules contain that a text alone does not pass: towers, what connects them, and attention to them."""


def reads_text(name: str, causal: Any) -> bool:
    """Whether a parameter of this name belongs to what a text passes: of a model that reads more, not its towers."""
    if causal.config.get_text_config() is causal.config:
        return True
    return not any(part in name for part in _NOT_OF_TEXT)


@contextmanager
def watched_layers(causal: Any) -> Iterator[dict[str, list[torch.Tensor]]]:
    """The layers that a text passes, each with its vectors, which have gradients inside whether they train or not.

    Vectors are norms and biases: floats in a quantised model too, and small.
    """
    count = getattr(causal.config.get_text_config(), "num_hidden_layers", None)
    lists: dict[str, list[tuple[str, Any]]] = {}
    for name, layer in layers_of(causal).items():
        lists.setdefault(name.rpartition(".")[0], []).append((name, layer))
    found: dict[str, list[torch.Tensor]] = {}
    for name, layer in (one for layers in lists.values() if len(layers) == count for one in layers):
        if all(reads_text(f"{name}.{each}", causal) for each, _ in layer.named_parameters()):
            found[name] = [one for one in layer.parameters() if one.ndim == 1 and one.is_floating_point()]
    frozen = [one for each in found.values() for one in each if not one.requires_grad]
    try:
        for one in frozen:
            one.requires_grad_(True)
        yield {name: each for name, each in found.items() if each}
    finally:
        for one in frozen:
            one.requires_grad_(False)


def passed_over(gradients: Mapping[int, Any], watched: Mapping[str, list[torch.Tensor]]) -> str:
    """What is wrong where a layer has no part in the logits; empty where each has.

    Args:
        gradients: by the identity of the parameter, None where it has none.
        watched: the vectors of each layer.
    """
    over = [name for name, vectors in watched.items() if all(gradients.get(id(one)) is None for one in vectors)]
    if not over:
        return ""
    many = f"{len(over)} of {len(watched)} layers"
    return f"{many}, such as {over[0]}, have no part in the logits: the model goes around them"
