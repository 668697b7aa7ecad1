"""Rows that are token ids already."""

from __future__ import annotations

from collections.abc import Sequence

from sftcore import Example, Formatter, Row, RowError, TokenizedRow, hookimpl, plugin
from sftcore.rows import value_of

IGNORED = -100


@plugin
class Tokenized:
    """Rows with `input_ids`, used as they are; `labels`, or masks of zeros and ones, say what counts."""

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
        def read(row: Row) -> Example:
            ids = value_of(row, self.input_ids)
            labels = row.get(self.labels)
            if labels is None:
                labels = self._masked(row, ids)
            for name, column in ((self.labels, labels), (self.weights, row.get(self.weights))):
                if column is not None and len(column) != len(ids):
                    raise RowError(f'"{name}" has {len(column)} entries, "{self.input_ids}" {len(ids)}.')
            return Example(tokens=TokenizedRow(ids, labels, row.get(self.weights)))

        return read

    def _masked(self, row: Row, ids: Sequence[int]) -> list[int] | None:
        masks = [row[name] for name in (self.completion_mask, self.assistant_masks) if row.get(name) is not None]
        if not masks:
            return None
        if any(len(mask) != len(ids) for mask in masks):
            raise RowError(f'a mask is not as long as "{self.input_ids}".')
        return [token if all(bits) else IGNORED for token, *bits in zip(ids, *masks, strict=True)]
