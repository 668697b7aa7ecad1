"""Makes batches from prepared rows: padded side by side, or laid end to end in one row.

A row has `input_ids`, and may have `labels`, `weights` and `seq_lengths` (the lengths of the documents packed into it).
If documents share a row, `position_ids` restart at 0 for each of them and there is no attention mask; padding counts as
documents of its own, none longer than the longest of the batch, so that no position is taken that the model may not
have. The first label of every document is -100, because nothing of that document comes before it.

Six tokens of two documents, of 4 and 2 tokens, padded to 8:

    input_ids      a   b   c   d   x   y   .   .
    position_ids   0   1   2   3   0   1   0   1
    labels      -100   b   c   d -100  y -100 -100
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, frozen

from sftcore.core.errors import ConflictError, DataError
from sftcore.core.registry import ActivePlugins
from sftcore.core.types import IGNORED, Collator, Plan

if TYPE_CHECKING:
    import torch

    Array = np.ndarray[Any, Any]
    Batch = dict[str, torch.Tensor]


def pad_rows(rows: Sequence[Mapping[str, Any]], *, pad_token_id: int, pad_to_multiple_of: int = 1) -> Batch:
    """Rows side by side, padded on the right to the longest.

    Returns:
        input_ids, labels: (rows, width) int64. weights: (rows, width) float32, if any row has weights. For packed rows
        position_ids: (rows, width) int64, and num_tokens, a scalar that does not count padding; for other rows
        attention_mask: (rows, width) int64.

    Raises:
        DataError: a row has no input_ids.
    """
    import torch

    _require_token_ids(rows)
    lengths = [len(row["input_ids"]) for row in rows]
    shape = len(rows), -(-max(lengths) // pad_to_multiple_of) * pad_to_multiple_of
    ids = np.full(shape, pad_token_id, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    weights = np.zeros(shape, np.float32)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids[i, :length] = row["input_ids"]
        labels[i, :length] = _labels_of(row)
        weights[i, :length] = _weights_of(row)
    batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
    if any(row.get("seq_lengths") is not None for row in rows):
        documents = [_seq_lengths_of(row) for row in rows]
        longest = max(itertools.chain(*documents))
        padding = [_cut_up(shape[1] - length, longest) for length in lengths]
        of_rows = zip(documents, padding, strict=True)
        position_ids = np.stack([restarting_positions([*one, *more]) for one, more in of_rows])
        batch["position_ids"] = torch.from_numpy(position_ids)
        batch["num_tokens"] = torch.tensor(sum(lengths))
    else:
        mask = np.arange(shape[1])[None] < np.array(lengths)[:, None]
        batch["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
    if any(row.get("weights") is not None for row in rows):
        batch["weights"] = torch.from_numpy(weights)
    return batch


def flatten_rows(rows: Sequence[Mapping[str, Any]], *, pad_token_id: int, pad_to_multiple_of: int = 1) -> Batch:
    """All documents of all rows end to end in one row, for padding-free training and packed rows.

    Returns:
        input_ids, labels, position_ids: (1, tokens) int64. weights: (1, tokens) float32, if any row has weights.
        num_tokens: a scalar that does not count padding.

    Raises:
        DataError: a row has no input_ids.
    """
    _require_token_ids(rows)
    whole: dict[str, Any] = {
        "input_ids": np.concatenate([np.asarray(row["input_ids"], np.int64) for row in rows]),
        "labels": np.concatenate([_labels_of(row) for row in rows]),
        "seq_lengths": [length for row in rows for length in _seq_lengths_of(row)],
    }
    if any(row.get("weights") is not None for row in rows):
        whole["weights"] = np.concatenate([_weights_of(row) for row in rows])
    return pad_rows([whole], pad_token_id=pad_token_id, pad_to_multiple_of=pad_to_multiple_of)


def collator_of(plugins: ActivePlugins, processor: Any, plan: Plan) -> Collator:
    """The collator of a run's plugin; each batch of it is looked at, see `wrong_batch`."""
    made: Collator = plugins.one("make_collator", processor=processor, plan=plan)
    return evolve(made, also=wrong_batch)  # type: ignore[misc]


def wrong_batch(batch: Mapping[str, Any], rows: Any = None) -> str:
    """What a collator gave that no run can train on, "" if nothing: two tensors of one shape are needed at least."""
    import torch

    for name in ("input_ids", "labels"):
        if name not in batch:
            return f'returned a batch without "{name}" (it has: {", ".join(map(str, batch)) or "nothing"})'
    shape = getattr(batch["input_ids"], "shape", None)
    for name in ("input_ids", "labels", "weights"):
        if (value := batch.get(name)) is None and name == "weights":
            continue
        if not isinstance(value, torch.Tensor):
            return f'returned "{name}" as {type(value).__name__}; expected a tensor'
        if value.ndim != 2 or value.shape != shape:
            wanted = "rows and tokens" if name == "input_ids" else f"{tuple(shape or ())} as input_ids"
            return f'returned "{name}" of shape {tuple(value.shape)}; expected {wanted}'
        if value.is_floating_point() != (name == "weights"):
            return f'returned "{name}" as {value.dtype}; expected {"floats" if name == "weights" else "int64"}'
    for name in ("attention_mask", "position_ids", "num_tokens"):
        value = batch.get(name, 0)
        if name in batch and not isinstance(value, torch.Tensor):
            return f'returned "{name}" as {type(value).__name__}; expected a tensor, or none of this name'
        if (
            name == "position_ids"
            and name in batch
            and (value.ndim < 2 or value.shape[-1] != batch["input_ids"].shape[-1])
        ):
            return f'returned "{name}" of shape {tuple(value.shape)}; expected {tuple(shape or ())} as input_ids'
        if name == "position_ids" and name in batch and value.is_floating_point():
            return f'returned "{name}" as {value.dtype}; expected int64'
    return ""


def keeping_labels(collator: Any) -> Any:
    """A user's collator; around one of transformers' that pads `input_ids` alone, one that pads the labels as well.

    Raises:
        ConflictError: it masks tokens for a model to fill in.
    """
    transformers = sys.modules.get("transformers")
    if transformers is None or type(collator) not in (
        transformers.DataCollatorForLanguageModeling,
        transformers.DataCollatorWithPadding,
    ):
        return collator
    if getattr(collator, "mlm", False):
        raise ConflictError(
            "DataCollatorForLanguageModeling masks tokens to be filled in, and a causal language model is trained.",
            where="SFTTrainer: data_collator",
            fix="Pass mlm=False, or leave data_collator out.",
        )
    return KeepsLabels(collator)


@frozen
class KeepsLabels:
    """A collator that pads `input_ids` alone, whose batches get the labels and weights of their rows, padded alike.

    transformers' own makes labels of all tokens, or cannot pad them. Rows without labels are left to it.
    """

    collator: Callable[[Sequence[Any]], Mapping[str, Any]]

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """input_ids, attention_mask, labels: (rows, width) int64; weights: the same, float32, if any row has some."""
        import torch

        if not isinstance(rows[0], Mapping):
            return dict(self.collator(rows))
        # with remove_unused_columns: false rows have other columns too, of which such a collator takes numbers
        padded = {"input_ids", *getattr(getattr(self.collator, "tokenizer", None), "model_input_names", ())}
        unlabelled = [
            {name: value for name, value in row.items() if name in padded or isinstance(value, (int, float))}
            for row in rows
        ]
        batch = dict(self.collator(unlabelled))
        shape = tuple(batch["input_ids"].shape)
        left = getattr(getattr(self.collator, "tokenizer", None), "padding_side", "right") == "left"
        labels, weights = np.full(shape, IGNORED, np.int64), np.zeros(shape, np.float32)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            own = slice(shape[1] - length, None) if left else slice(length)
            labels[i, own], weights[i, own] = _labels_of(row), _weights_of(row)
        if any(row.get("labels") is not None for row in rows):
            batch["labels"] = torch.from_numpy(labels)
        if any(row.get("weights") is not None for row in rows):
            batch["weights"] = torch.from_numpy(weights)
        return batch


def filler_of(processor: Any) -> int:
    """A token id to pad with. Padding is known by mask and labels, so stop tokens stay trained even if they pad."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return (tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id) or 0


def multiple_of(plan: Plan) -> int:
    """The multiple that rows are padded to."""
    multiple = plan.settings.get("pad_to_multiple_of")
    return multiple if isinstance(multiple, int) else 1


def restarting_positions(seq_lengths: Sequence[int]) -> Array:
    """Positions that start again at 0 for each document: (sum of lengths,) int64.

    >>> restarting_positions([3, 1, 2]).tolist()
    [0, 1, 2, 0, 0, 1]
    """
    lengths = np.asarray(seq_lengths, np.int64)
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(starts, lengths)


def _cut_up(length: int, longest: int) -> list[int]:
    """Lengths of at most `longest` that add up to `length`."""
    return [longest] * (length // longest) + [length % longest]


def no_token_ids(columns: Iterable[str], where: str) -> DataError:
    """The error for rows with these columns, which nobody has prepared."""
    found = ", ".join(columns)
    return DataError(
        f"the rows have no input_ids{found and f', only {found}'}, so they are not prepared.",
        where=where,
        fix="Drop skip_prepare_dataset, or pass a data_collator that reads them.",
    )


def _require_token_ids(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        if "input_ids" not in row:
            raise no_token_ids(map(str, row), "a batch")


def _labels_of(row: Mapping[str, Any]) -> Array:
    given = row.get("labels")
    labels = np.array(row["input_ids"] if given is None else given, np.int64)
    lengths = np.asarray(_seq_lengths_of(row), np.int64)
    labels[(np.cumsum(lengths) - lengths)[lengths > 0]] = IGNORED
    return labels


def _weights_of(row: Mapping[str, Any]) -> Any:
    return np.ones(len(row["input_ids"])) if row.get("weights") is None else row["weights"]


def _seq_lengths_of(row: Mapping[str, Any]) -> Sequence[int]:
    given = row.get("seq_lengths")
    return [len(row["input_ids"])] if given is None else given
