"""The other columns of a row, kept beside its tokens where a run asks for them (`remove_unused_columns: false`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftcore.core.errors import ConflictError
from sftcore.core.types import Plan

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

    from sftcore.data.ledger import Ledger

_PREPARED = ("input_ids", "labels", "weights", "seq_lengths", "documents")
_OF_TOKENS = ("attention_mask", "completion_mask", "assistant_masks", "position_ids", "token_type_ids")
"""Columns with an entry for each token, which may have been cut since."""


def other_columns(columns: Iterable[str], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that a run keeps of its raw rows beside what it prepares."""
    if settings.get("remove_unused_columns", True):
        return ()
    return tuple(name for name in columns if name not in (*_PREPARED, *_OF_TOKENS))


def reads_tokens_alone(plan: Plan) -> bool:
    """Whether the collator is the run's own, which leaves other columns out of its batches."""
    selected = plan.selected("collator")
    return bool(selected) and all(one.default or one.path.endswith("padding_free") for one in selected)


def refuse_no_place(columns: Sequence[str], plan: Plan, why: str, *, where: str) -> None:
    """Refuse a collator of the user's that may ask for columns which its rows have no place for.

    Raises:
        ConflictError: with the columns; not where the run's own collator reads tokens alone.
    """
    if columns and not reads_tokens_alone(plan):
        named = ", ".join(f'"{name}"' for name in columns)
        raise ConflictError(
            f"{why}, and have no place for the columns {named}, which remove_unused_columns: false keeps.",
            where=where,
            fix="Drop remove_unused_columns, or those columns, or the setting that joins rows.",
        )


def with_columns(
    prepared: Dataset, raw: Dataset, columns: Sequence[str], numbering: Sequence[int] | None, ledger: Ledger
) -> Dataset:
    """Prepared rows with these columns of the raw rows that they come from; `ledger.one_each` holds.

    `numbering` holds the numbers of the raw rows, if they differ from their indices.
    """
    from datasets import concatenate_datasets

    others = raw.with_format(None).select_columns(list(columns))
    kept = ledger.given_rows(range(len(prepared)), numbering)
    if numbering is not None:
        places = {number: place for place, number in enumerate(numbering)}
        kept = [places[number] for number in kept]
    if len(kept) != len(raw):
        others = others.select(kept)
    found: Dataset = concatenate_datasets([prepared, others], axis=1)
    return found


def columns_of_rows(
    taken: Mapping[str, Sequence[Any]], columns: Sequence[str], numbers: Sequence[int], outcome: pa.Table
) -> dict[str, list[Any]]:
    """These columns of a batch of a stream, for each example in the `outcome` of `Pipeline.encode` that is kept."""
    places = {number: place for place, number in enumerate(numbers)}
    found = zip(outcome.column("_row").to_pylist(), outcome.column("_dropped").to_pylist(), strict=True)
    kept = [places[number] for number, dropped in found if dropped is None]
    return {name: [taken[name][place] for place in kept] for name in columns}
