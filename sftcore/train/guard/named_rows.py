"""Rows of a prepared set as the user knows them: by their number in the data that were given, and by how they begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sftcore.core.visible import visible

if TYPE_CHECKING:
    from sftcore.data.sets import DataPreparation

_LISTED = 20
_BEGINNINGS = 3
_CHARACTERS = 48


def named_rows(trainer: Any, rows: Sequence[int]) -> str:
    """Rows of the training set in words.

    Args:
        trainer: a trainer whose `train_dataset` is map-style.
        rows: their numbers there, counted from 0.
    """
    rows = sorted(set(rows))
    if (given := numbers_given(trainer.data, trainer.train_dataset, "train_dataset", rows)) is not None:
        given, rows = map(list, zip(*sorted(zip(given, rows, strict=True)), strict=True))
    ledger = trainer.data.ledger_of("train_dataset")
    if given is not None:
        text = f"{_listed('row', given)} of {trainer.data.label}"
    elif ledger is not None and ledger.packing:
        text = f"{_listed('packed block', rows)} (trainer.train_dataset[block])"
    else:
        text = f"{_listed('row', rows)} of the prepared training set (trainer.train_dataset[row])"
    shown = [one for row in rows[:_BEGINNINGS] if (one := _beginning(trainer, row))]
    more = ", …" if shown and len(rows) > _BEGINNINGS else ""
    return f"{text}, beginning {', '.join(shown)}{more}" if shown else text


def numbers_given(data: DataPreparation, dataset: Any, name: str, rows: Sequence[int]) -> list[int] | None:
    """Their numbers in the data that were given under this name; None where a row there is not a row here."""
    ledger = data.ledger_of(name)
    if ledger is None or ledger.packing or len(dataset) != ledger.rows_kept or not ledger.one_each:
        return None
    order = getattr(dataset, "_indices", None)  # of a set that was shuffled once it was prepared
    kept = rows if order is None else [order.column(0)[row].as_py() for row in rows]
    return ledger.given_rows(kept, data.numberings.get(name))


def _beginning(trainer: Any, row: int) -> str:
    ids = trainer.train_dataset[row].get("input_ids")
    if not ids:
        return ""
    text = visible(trainer.data.tokenizer.decode(ids[:_CHARACTERS]))
    return f'"{text[:_CHARACTERS]}{"…" if len(text) > _CHARACTERS or len(ids) > _CHARACTERS else ""}"'


def _listed(noun: str, numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _LISTED} more" if len(numbers) > _LISTED else ""
    return f"{noun}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:_LISTED]))}{more}"
