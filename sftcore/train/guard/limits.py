"""Rows that a model has no table for: ids beyond its embeddings, and more tokens than it has positions.

On a CPU such a row is an IndexError somewhere in the forward pass, and on a GPU an assertion of the device, which ends
the process. Prepared sets are looked at before training, and every batch before it is placed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore.core.errors import DataError
from sftcore.core.types import Plan
from sftcore.model.embeddings import num_rows
from sftcore.model.skeleton import learned_positions, virtual_tokens
from sftcore.model.unwrap import causal_model
from sftcore.train.guard.named_rows import origins

if TYPE_CHECKING:
    from datasets import Dataset

    from sftcore.data.sets import DataPreparation

_OTHER_IDS = ("vision_config", "audio_config")
"""Models whose batches may hold ids that stand for no word, and have no row."""


@frozen
class TokenLimits:
    """`rows` of a model's embeddings, and how many `positions` are left for a row; None where there is no limit.

    `takes_positions` says whether the model takes `position_ids` that count from 0, as RoBERTa does not.
    """

    rows: int | None = None
    positions: int | None = None
    takes_positions: bool = False

    @classmethod
    def of(cls, model: Any) -> TokenLimits:
        """Those of a model, wrapped by PEFT or not."""
        causal = causal_model(model)
        found = learned_positions(causal)
        own = any(getattr(causal.config, name, None) is not None for name in _OTHER_IDS)
        counted = found == getattr(causal.config.get_text_config(), "max_position_embeddings", None)
        takes = counted and "position_ids" in inspect.signature(causal.forward).parameters
        return cls(None if own else num_rows(causal), found and found - virtual_tokens(model, Plan(())), takes)

    def refuse(self, batch: Mapping[str, Any]) -> None:
        """Refuse a batch on the CPU whose ids (B, T) the model has no row or no position for.

        Raises:
            DataError: with the id, or with the length.
        """
        import torch

        ids = batch.get("input_ids")
        if not isinstance(ids, torch.Tensor) or ids.device.type != "cpu" or not ids.numel():
            return
        if self.rows is not None and (largest := int(ids.max())) >= self.rows:
            raise _beyond("a batch", f"the id {largest}", self.rows)
        if self.positions is not None and (longest := _longest(batch, ids)) > self.positions:
            raise _too_long("a batch", longest, self.positions)

    def placed(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch; where padding (B, T) goes beyond the positions, with ones that give it those of the last token."""
        import torch

        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        if self.positions is None or not self.takes_positions or "position_ids" in batch:
            return batch
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or mask.shape != getattr(ids, "shape", None):
            return batch
        if mask.shape[1] <= self.positions:
            return batch
        return {**batch, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}

    def refuse_set(self, dataset: Any, name: str, data: DataPreparation) -> None:
        """Refuse a prepared map-style set, before training, for the first row that the model has no table for.

        Raises:
            DataError: with the row.
        """
        from datasets import Dataset

        if isinstance(dataset, Mapping):
            for key, one in dataset.items():
                self.refuse_set(one, f"{name}[{key!r}]", data)
        if not isinstance(dataset, Dataset) or "input_ids" not in dataset.column_names:
            return
        as_given = data.ledger_of(name) is None
        larger = self.rows is not None and max(data.tokenizer.get_vocab().values(), default=0) >= self.rows
        sources = data.mixed[name].names if name in data.mixed else (name,)
        if self.rows is not None and (larger or as_given or data.given_tokens.intersection(sources)):
            for row, largest in _above(dataset, "input_ids", self.rows - 1):
                token = data.tokenizer.convert_ids_to_tokens(largest)
                spelled = f'the token "{token}" ({largest})' if token is not None else f"the id {largest}"
                raise _beyond(_place(dataset, name, row, data), spelled, self.rows)
        cut = data.max_length is not None and data.max_length <= (self.positions or 0) and not as_given
        if self.positions is not None and not cut:
            column = "seq_lengths" if "seq_lengths" in dataset.column_names else None
            for row, longest in _above(dataset, column, self.positions):
                raise _too_long(_place(dataset, name, row, data), longest, self.positions)


def refuse_beyond_tables(model: Any, data: DataPreparation, train: Any, evaluation: Any) -> None:
    """Refuse the prepared sets of a run where the model has no table for a row.

    Raises:
        DataError: with the row.
    """
    limits = TokenLimits.of(model)
    limits.refuse_set(train, "train_dataset", data)
    limits.refuse_set(evaluation, "eval_dataset", data)


@frozen
class WithinLimits:
    """A collator whose batches the model has tables for."""

    collate: Callable[[list[Any]], Any]
    limits: TokenLimits

    def __call__(self, rows: list[Any]) -> Any:
        found = self.collate(rows)
        if not isinstance(found, Mapping):
            return found
        self.limits.refuse(found)
        return self.limits.placed(found)


def _longest(batch: Mapping[str, Any], ids: Any) -> int:
    """How many positions the longest document of a batch takes."""
    places, mask = batch.get("position_ids"), batch.get("attention_mask")
    if places is not None:
        return int(places.max()) + 1
    if mask is not None and mask.ndim == 2:
        return int(mask.sum(dim=1).max())
    return int(ids.shape[-1])


def _above(dataset: Dataset, column: str | None, limit: int) -> Iterator[tuple[int, int]]:
    """Rows above the limit, with their largest value in a column of lists; without a column, with how many ids."""
    import numpy as np
    import pyarrow.compute as pc

    before = 0
    for table in dataset.select_columns([column or "input_ids"]).with_format("arrow").iter(1000):
        values = table.column(0).combine_chunks()
        if column is None:
            largest = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        elif (highest := pc.max(values.flatten()).as_py()) is None or highest <= limit:
            largest = np.zeros(len(values))
        else:
            largest = np.array([max(row, default=0) for row in values.to_pylist()])
        for row in np.flatnonzero(largest > limit):
            yield before + int(row), int(largest[row])
        before += len(values)


def _place(dataset: Dataset, name: str, row: int, data: DataPreparation) -> str:
    given = origins(data, dataset, name, [row])
    if given is None:
        return f"{name}: row {row} of the prepared set"
    source, number = given[0]
    return f"{source}: row {number}"


def _beyond(place: str, spelled: str, rows: int) -> DataError:
    return DataError(
        f"{spelled} has no row in the model's embeddings, which have {rows:,}.",
        where=place,
        fix="Use the model's own tokenizer, or let the model grow: model.resize_token_embeddings(len(tokenizer)).",
    )


def _too_long(place: str, longest: int, positions: int) -> DataError:
    return DataError(
        f"{longest:,} tokens are more than the {positions:,} positions that the model has learned.",
        where=place,
        fix=f"Set max_length to {positions} or less.",
    )
