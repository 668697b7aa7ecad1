"""Spares transformers two questions to the device in each forward pass: is a row padded, do rows hold documents?

transformers reads both from the batch's tensors, for which the host waits (transformers.masking_utils, 5.17 to 5.24).
The answers are known from the collator. Inside `masks_known` its two functions give them for this batch; for tensors of
another shape, such as those of a vision tower, they do what they always do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sftcore.data.host_facts import HostFacts

if TYPE_CHECKING:
    import torch


@contextmanager
def masks_known(facts: HostFacts | None, shape: tuple[int, int]) -> Iterator[None]:
    """Answer for a batch of this shape (B, T) from its facts; None leaves transformers as it is."""
    if facts is None:
        yield
        return
    from transformers import masking_utils

    find, fast_all = masking_utils.find_packed_sequence_indices, masking_utils.fast_all
    packed = facts.edges is not None and len(facts.edges) > shape[0] + 1

    def find_packed_sequence_indices(position_ids: torch.Tensor) -> torch.Tensor | None:
        if tuple(position_ids.shape) != shape:
            found: torch.Tensor | None = find(position_ids)
            return found
        if not packed:
            return None
        first = position_ids[:, :1] - 1
        return (position_ids.diff(prepend=first, dim=-1) != 1).cumsum(-1)

    def every(mask: torch.Tensor) -> Any:
        # virtual tokens of prompt learning may stand before the batch's own, and are never hidden
        is_batch = mask.ndim == 2 and mask.shape[0] == shape[0] and mask.shape[1] >= shape[1]
        return not facts.padded if is_batch else fast_all(mask)

    masking_utils.find_packed_sequence_indices, masking_utils.fast_all = find_packed_sequence_indices, every
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices, masking_utils.fast_all = find, fast_all
