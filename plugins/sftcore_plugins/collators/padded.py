"""Batches padded on the right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore import Collator, Plan, hookimpl, plugin
from sftcore.plugin_api import filler_of, multiple_of, pad_rows

if TYPE_CHECKING:
    import torch


@plugin
class Padded:
    """Rows padded on the right to the longest of the batch; padding never counts.

    Packed rows get positions that restart at each document instead of an attention mask, and stay side by side: with
    attention whose cost grows with the square of a row, that is cheaper than one long row.
    """

    @hookimpl
    def flattens(self) -> bool:
        return False

    @hookimpl
    def make_collator(self, processor: Any, plan: Plan) -> Collator:
        return PaddedCollator(filler_of(processor), multiple_of(plan))


@frozen
class PaddedCollator:
    """See `sftcore.plugin_api.pad_rows` for shapes and dtypes."""

    pad_token_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return pad_rows(rows, pad_token_id=self.pad_token_id, pad_to_multiple_of=self.pad_to_multiple_of)
