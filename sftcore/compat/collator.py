"""TRL's data collator for language modelling, built on the same two functions as the collators of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sftcore.core.errors import OptionTypeError
from sftcore.data.collate import flatten_rows, pad_rows, restarting_positions

if TYPE_CHECKING:
    import torch


@dataclass
class DataCollatorForLanguageModeling:
    """Makes a batch of rows with `input_ids` and optional `labels`, `weights` and `seq_lengths`.

    A padded batch has input_ids, labels and attention_mask, each (rows, longest) int64. Packed rows get position_ids
    instead of the mask, with which their documents would attend to each other. A padding-free batch has input_ids,
    labels and position_ids, each (1, tokens) int64, and the boundaries of the documents for attention and convolution
    kernels: cu_seq_lens_q and cu_seq_lens_k (documents + 1,) int32, max_length_q, max_length_k, and seq_idx (1, tokens)
    int32.

    Args:
        pad_token_id: the token id of padding, whose labels are -100.
        padding_free: put all documents end to end into one row; the first label of each is -100.
        return_position_ids: also return position_ids for padded batches.
        pad_to_multiple_of: pad to a multiple of this length.
        return_tensors: must be "pt".
    """

    pad_token_id: int
    padding_free: bool = False
    return_position_ids: bool = False
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> dict[str, Any]:
        """Make a batch of the rows."""
        kind = return_tensors or self.return_tensors
        if kind != "pt":
            raise OptionTypeError(f'return_tensors must be "pt", got "{kind}".', where=type(self).__name__)
        return self.torch_call(features)

    def torch_call(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch of the rows, as torch tensors."""
        build = flatten_rows if self.padding_free else pad_rows
        batch: dict[str, Any] = build(
            examples, pad_token_id=self.pad_token_id, pad_to_multiple_of=self.pad_to_multiple_of or 1
        )
        batch.pop("num_tokens", None)  # SFTTrainer's own count, which a model's forward pass may not accept
        if self.padding_free:
            return {**batch, **_boundaries(batch["position_ids"])}
        for i, row in enumerate(examples):
            if row.get("seq_lengths") is None and len(row["input_ids"]):
                # the first token is never predicted, so its label has no effect; TRL's batches keep it
                given = row.get("labels")
                batch["labels"][i, 0] = (row["input_ids"] if given is None else given)[0]
        if self.return_position_ids:
            batch.update(_positions_and_mask(examples, batch["input_ids"].shape[1]))
        return batch

    @staticmethod
    def get_position_ids_from_packed_seq_lengths(batch_seq_lengths: list[list[int]]) -> list[torch.Tensor]:
        """Positions that restart at 0 with each document: one (tokens,) int64 tensor per row.

        >>> DataCollatorForLanguageModeling.get_position_ids_from_packed_seq_lengths([[2, 1], [3]])
        [tensor([0, 1, 0]), tensor([0, 1, 2])]
        """
        import torch

        return [torch.from_numpy(restarting_positions(seq_lengths)) for seq_lengths in batch_seq_lengths]


def _boundaries(position_ids: torch.Tensor) -> dict[str, Any]:
    """The boundaries of the documents in the single row of a padding-free batch."""
    import torch

    starts = np.flatnonzero(position_ids[0].numpy() == 0)
    lengths = np.diff(starts, append=position_ids.shape[1])
    cu_seq_lens = torch.from_numpy(np.append(starts, position_ids.shape[1]).astype(np.int32))
    which = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    longest = int(lengths.max())
    return {
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
        "seq_idx": torch.from_numpy(which)[None],
    }


def _positions_and_mask(rows: Sequence[Mapping[str, Any]], width: int) -> dict[str, torch.Tensor]:
    import torch

    positions = np.zeros((len(rows), width), np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        given = row.get("seq_lengths")
        positions[i, :length] = restarting_positions([length] if given is None else given)
        mask[i, :length] = 1
    return {"position_ids": torch.from_numpy(positions), "attention_mask": torch.from_numpy(mask)}
