"""Spares transformers two questions to the device in each forward pass: is a row padded, do rows hold documents?

transformers reads both from the batch's tensors, for which the host waits (transformers.masking_utils, 5.17 to 5.24).
The answers are known from the collator. Inside `masks_known` its functions give them for this batch's own mask and
positions; for all others, such as those of a vision tower or what a hook has put in their place, they do what they
always do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import define, field

from sftcore.data.host_facts import HostFacts

if TYPE_CHECKING:
    import torch


@contextmanager
def masks_known(facts: HostFacts | None, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Answer for the model's inputs from the facts of their batch; None leaves transformers as it is.

    Args:
        facts: of the batch.
        inputs: input_ids (B, T), and attention_mask or position_ids of that shape where the batch has them.
    """
    if facts is None:
        yield
        return
    from transformers import masking_utils

    names = "_preprocess_mask_arguments", "find_packed_sequence_indices", "fast_all"
    before = {name: getattr(masking_utils, name) for name in names}
    # documents may be kept apart by a mask for each type of layer, which is a dict
    own = [one if hasattr(one, "_version") else None for one in map(inputs.get, ("attention_mask", "position_ids"))]
    asked = _Asked(facts, own[0], own[1], before)
    for name, answer in zip(names, (asked.preprocess, asked.find_packed, asked.every), strict=True):
        setattr(masking_utils, name, answer)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(masking_utils, name, function)


@define(eq=False)
class _Asked:
    """Knows whether what transformers asks about are the batch's own mask and positions."""

    facts: HostFacts
    mask: torch.Tensor | None
    positions: torch.Tensor | None
    before: Mapping[str, Callable[..., Any]]
    own_mask: bool = False
    versions: tuple[int, ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.versions = self._versions()

    def _versions(self) -> tuple[int, ...]:
        return tuple(one._version for one in (self.mask, self.positions) if one is not None)

    def preprocess(self, config: Any, embeds: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, which first sees the mask as the model was given it."""
        self.own_mask = mask is self.mask and self.versions == self._versions()
        return self.before["_preprocess_mask_arguments"](config, embeds, mask, *args, **kwargs)

    def find_packed(self, position_ids: torch.Tensor) -> torch.Tensor | None:
        """The number of each token's document in its row, (B, T); None where rows hold one each."""
        own = self.positions is None or position_ids is self.positions
        if not own or self.versions != self._versions():
            found: torch.Tensor | None = self.before["find_packed_sequence_indices"](position_ids)
            return found
        if self.positions is None or not self.facts.jumps:
            return None
        first = position_ids[:, :1] - 1
        return (position_ids.diff(prepend=first, dim=-1) != 1).cumsum(-1)

    def every(self, mask: torch.Tensor) -> Any:
        """Whether a mask hides nothing."""
        known = self.own_mask and self.mask is not None and mask.shape == self.mask.shape
        return not self.facts.padded if known else self.before["fast_all"](mask)
