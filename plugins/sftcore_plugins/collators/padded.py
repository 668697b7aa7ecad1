"""Batches padded on the right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore import Collator, Plan, hookimpl, plugin
from sftcore.data.tokenize import IGNORED

if TYPE_CHECKING:
    import torch


@plugin
class Padded:
    """Rows padded on the right to the longest of the batch, with an attention mask; padding never counts."""

    @hookimpl
    def make_collator(self, processor: Any, plan: Plan) -> Collator:
        multiple = plan.settings.get("pad_to_multiple_of")
        # Any id serves as filler, since mask and labels say what is padding; a stop token is never turned into a pad
        tokenizer = getattr(processor, "tokenizer", processor)
        filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return PaddedCollator(filler or 0, multiple if isinstance(multiple, int) else 1)


@frozen
class PaddedCollator:
    """input_ids, labels, attention_mask: (rows, longest) int64; weights, where rows have them: float32."""

    pad_token_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        width = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of

        def padded(values: list[list[Any]], filler: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor([[*value, *[filler] * (width - len(value))] for value in values], dtype=dtype)

        ids = [row["input_ids"] for row in rows]
        batch = {
            "input_ids": padded(ids, self.pad_token_id, torch.long),
            "labels": padded([row.get("labels", row["input_ids"]) for row in rows], IGNORED, torch.long),
            "attention_mask": padded([[1] * len(row) for row in ids], 0, torch.long),
        }
        if any(row.get("weights") is not None for row in rows):
            given = [row.get("weights") or [1.0] * len(row["input_ids"]) for row in rows]
            batch["weights"] = padded(given, 0.0, torch.float32)
        return batch
