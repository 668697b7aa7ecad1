"""What the page of a run shows beside its curves: plugins with reasons, lengths of rows, and rows with their masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs

from sftcore.core.types import TokenizedRow
from sftcore.report.lengths import describe
from sftcore.report.pieces import Piece, documents_of, part_of, pieces_of

if TYPE_CHECKING:
    from sftcore.train.view import RunView

SHOWN = 5
"""Rows whose masks are shown, at even distances in the set."""
TOKENS = 400
"""Tokens of such a row that are shown."""


def plugins_of(trainer: RunView) -> list[dict[str, Any]]:
    """Each plugin of a run, and why it is there: chosen in the run's settings, by default, or by `auto`."""
    plan, found = trainer.setup.plan, []
    for bound in [*trainer.setup.plugins.bound, *trainer.data.formats.values()]:
        entry = bound.entry
        why = plan.reasons.get(entry.kind) or ("the default" if bound.selection.default else bound.selection.path)
        found.append(
            {"kind": entry.kind, "name": entry.name, "distribution": entry.distribution, "version": entry.version,
             "why": why}
        )  # fmt: skip
    return [one for number, one in enumerate(found) if one not in found[:number]]


def lengths_of(rows: Any) -> dict[str, Any] | None:
    """The lengths of prepared rows, or of the documents of packed ones; None for rows that are made when needed."""
    import pyarrow.compute as pc

    table = _table(rows)
    if table is None:
        return None
    if packed := "seq_lengths" in table.column_names:
        lengths = pc.list_flatten(table["seq_lengths"])
    else:
        lengths = pc.list_value_length(table["input_ids"])
    found = describe(lengths.to_pylist(), "tokens")
    return None if found is None else {"of": "documents" if packed else "rows", **attrs.asdict(found)}


def rows_of(rows: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """A few prepared rows as stretches of text, each trained on or not."""
    if _table(rows) is None:
        return []
    numbers = sorted({round(i * (len(rows) - 1) / (SHOWN - 1)) for i in range(SHOWN)})
    return [_row(number, rows[number], tokenizer) for number in numbers]


def _table(rows: Any) -> Any:
    from datasets import Dataset

    if not isinstance(rows, Dataset) or not {"input_ids", "labels"} <= {*rows.column_names} or not len(rows):
        return None
    return rows.with_format("arrow")[:]


def _row(number: int, row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    pieces: list[Piece] = []
    whole = TokenizedRow(row["input_ids"], row["labels"], row.get("weights"))
    documents = documents_of(row) if row.get("seq_lengths") else [(0, whole)]
    for _, document in documents:
        if len(pieces) < TOKENS:
            pieces += pieces_of(part_of(document, slice(0, TOKENS)), tokenizer)
    shown = sum(len(piece.ids) for piece in pieces)
    kind = "block" if row.get("seq_lengths") else "row"
    return {
        "caption": f"prepared {kind} {number}: {len(row['input_ids']):,} tokens",
        "pieces": list(_stretches(pieces)),
        "left_out": max(len(row["input_ids"]) - shown, 0),
    }


def _stretches(pieces: list[Piece]) -> Iterator[dict[str, Any]]:
    """Neighbouring pieces of the same kind as one."""
    run: list[Piece] = []
    for piece in [*pieces, None]:
        if run and (piece is None or (piece.weight, piece.special) != (run[0].weight, run[0].special)):
            text = "".join(one.text for one in run)
            yield {"text": text, "weight": run[0].weight, "special": run[0].special}
            run = []
        if piece is not None:
            run.append(piece)
