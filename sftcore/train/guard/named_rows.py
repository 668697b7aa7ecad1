"""Rows of a prepared set as the user knows them: by their number in the data that were given, and by how they begin."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
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
    found = origins(trainer.data, trainer.train_dataset, "train_dataset", rows)
    ledger = trainer.data.ledger_of("train_dataset")
    if found is not None:
        found, rows = map(list, zip(*sorted(zip(found, rows, strict=True)), strict=True))
        by_set = [(name, [number for _, number in some]) for name, some in groupby(found, key=lambda one: one[0])]
        labels = {"train_dataset": "the training data", **trainer.data.labels}
        text = ", ".join(f"{_listed('row', numbers)} of {labels.get(name, name)}" for name, numbers in by_set)
    elif ledger is not None and ledger.packing:
        text = f"{_listed('packed block', rows)} (trainer.train_dataset[block])"
    else:
        text = f"{_listed('row', rows)} of the prepared training set (trainer.train_dataset[row])"
    shown = [one for row in rows[:_BEGINNINGS] if (one := _beginning(trainer, row))]
    more = ", …" if shown and len(rows) > _BEGINNINGS else ""
    return f"{text}, beginning {', '.join(shown)}{more}" if shown else text


def origins(data: DataPreparation, dataset: Any, name: str, rows: Sequence[int]) -> list[tuple[str, int]] | None:
    """The set that each row was given in, and its number there; None where a row there is not a row here."""
    ledger, mixed = data.ledger_of(name), data.mixed.get(name)
    if ledger is None or ledger.packing or len(dataset) != ledger.rows_kept or not ledger.one_each:
        return None
    if mixed is None:
        order = getattr(dataset, "_indices", None)  # of a set that was shuffled once it was prepared
        kept = rows if order is None else [order.column(0)[row].as_py() for row in rows]
        return [(name, number) for number in ledger.given_rows(kept, data.numberings.get(name))]
    found = []
    for source, kept_row in map(mixed.origin, rows):
        own = data.ledger_of(source)
        if own is None or not own.one_each:
            return None
        found.append((source, own.given_rows([kept_row], data.numberings.get(source))[0]))
    return found


def _beginning(trainer: Any, row: int) -> str:
    ids = trainer.train_dataset[row].get("input_ids")
    if not ids:
        return ""
    text = visible(trainer.data.tokenizer.decode(ids[:_CHARACTERS]))
    return f'"{text[:_CHARACTERS]}{"…" if len(text) > _CHARACTERS or len(ids) > _CHARACTERS else ""}"'


def _listed(noun: str, numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _LISTED} more" if len(numbers) > _LISTED else ""
    return f"{noun}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:_LISTED]))}{more}"
