"""Rows that are token ids already."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any

from sftcore import Example, Formatter, Row, RowError, TokenizedRow, hookimpl, plugin
from sftcore.plugin_api import IGNORED
from sftcore.rows import documents_of, value_of

_OTHER_MASKS = ("loss_mask", "assistant_mask", "assistant_tokens_mask", "completion_masks")
"""What masks are called elsewhere."""
_BITS = (int, bool, float)
_LAYOUT = ("seq_lengths", "position_ids", "attention_mask")
"""Columns that say where the documents of a row are, or its padding."""


@plugin
class Tokenized:
    """Rows with `input_ids`, used as they are; `labels`, or masks of zeros and ones, say what counts.

    Rows that were packed before (`seq_lengths`, or `position_ids` or `attention_mask` that tell documents apart) are
    taken apart into their documents, and padding (`attention_mask` of 0) is left out.
    """

    input_ids: str = "input_ids"
    labels: str = "labels"
    weights: str = "weights"
    completion_mask: str = "completion_mask"
    assistant_masks: str = "assistant_masks"

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        return self.input_ids in columns

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        names = dict.fromkeys((self.completion_mask, self.assistant_masks, *_OTHER_MASKS))
        masks = tuple(name for name in names if name in columns)
        read = self._read_documents if set(_LAYOUT) & set(columns) else self._read
        return functools.partial(read, masks)

    def _read_documents(self, masks: Sequence[str], row: Row) -> list[Example]:
        whole = self._read(masks, row).tokens
        assert whole is not None
        ids, labels, weights = whole.input_ids, whole.labels, whole.weights
        lengths = None if row.get("seq_lengths") is None else _numbers(row["seq_lengths"], "seq_lengths")
        counted = ids if isinstance(ids, list) else list(ids)
        positions = self._column(row, "position_ids", counted)
        attended = self._column(row, "attention_mask", counted, _BITS)
        return [
            Example(
                tokens=TokenizedRow(ids[first:last], labels and labels[first:last], weights and weights[first:last])
            )
            for first, last in documents_of(len(ids), lengths, positions, attended)
        ]

    def _read(self, masks: Sequence[str], row: Row) -> Example:
        ids = _numbers(value_of(row, self.input_ids), self.input_ids)
        if ids and min(ids) < 0:
            raise RowError(f'"{self.input_ids}" holds {min(ids)}, and token ids begin at 0.')
        labels = self._column(row, self.labels, ids)
        if labels is None:
            labels = self._masked(row, ids, masks) if masks else None
        elif wrong := [label for label in set(labels) if label < 0 and label != IGNORED]:
            raise RowError(
                f'"{self.labels}" holds {max(wrong)}, which is not a token id.',
                fix=f"{IGNORED} marks a token that does not count.",
            )
        weights = self._column(row, self.weights, ids, (int, float))
        if weights and not (min(weights) >= 0 and max(weights) <= 1):
            raise RowError(f'"{self.weights}" holds a number outside 0.0 to 1.0.')
        return Example(tokens=TokenizedRow(ids, labels, weights))

    def _masked(self, row: Row, ids: list[int], names: Sequence[str]) -> list[int] | None:
        found = (self._column(row, name, ids, _BITS, {0, 1}) for name in names)
        masks = [mask for mask in found if mask is not None]
        if not masks:
            return None
        return [token if all(bits) else IGNORED for token, *bits in zip(ids, *masks, strict=True)]

    def _column(
        self, row: Row, name: str, ids: list[int], types: tuple[type, ...] = (int,), known: Collection[Any] = ()
    ) -> list[Any] | None:
        """The row's numbers in this column, as many as it has tokens; None where the row has none."""
        if row.get(name) is None:
            return None
        values = _numbers(row[name], name, types)
        if len(values) != len(ids):
            raise RowError(f'"{name}" has {len(values)} entries, "{self.input_ids}" {len(ids)}.')
        if known and (wrong := set(values).difference(known)):
            raise RowError(f'"{name}" holds {min(wrong)}, and a mask is of 0 and 1.')
        return values


def _numbers(value: Any, name: str, types: tuple[type, ...] = (int,)) -> list[Any]:
    """A flat list of numbers; arrays and tensors become one."""
    values = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(values, (list, tuple)):
        raise RowError(f'"{name}" is not a list of numbers but {type(value).__name__}.')
    if wrong := set(map(type, values)).difference(types):
        found = next(one for one in values if type(one) in wrong)
        raise RowError(f'"{name}" holds {found!r:.40}, which is not a {"token id" if types == (int,) else "number"}.')
    return values if isinstance(values, list) else list(values)
