"""Batches laid end to end in one row, without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore import Collator, Plan, hookimpl, plugin
from sftcore.plugin_api import filler_of, flatten_rows, multiple_of

if TYPE_CHECKING:
    import torch


@plugin
class Flattened:
    """All documents of a batch in one row without padding, with positions that restart at each of them."""

    @hookimpl
    def flattens(self) -> bool:
        return True

    @hookimpl
    def make_collator(self, processor: Any, plan: Plan) -> Collator:
        return FlattenedCollator(filler_of(processor), multiple_of(plan))


@frozen
class FlattenedCollator:
    """See `sftcore.plugin_api.flatten_rows` for shapes and dtypes."""

    pad_token_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return flatten_rows(rows, pad_token_id=self.pad_token_id, pad_to_multiple_of=self.pad_to_multiple_of)
