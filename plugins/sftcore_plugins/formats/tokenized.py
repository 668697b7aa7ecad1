"""Rows that are token ids already."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Collection, Sequence
from typing import Any

from sftcore import Example, Formatter, Row, RowError, TokenizedRow, hookimpl, plugin
from sftcore.plugin_api import IGNORED
from sftcore.rows import documents_of, value_of

_OTHER_MASKS = ("loss_mask", "assistant_mask", "assistant_tokens_mask", "completion_masks")
"""What masks are called elsewhere."""
_MARK = re.compile(r"(?i)mask|loss|weight|label|supervis|target")
_NO_MARK = ("special_tokens_mask", "token_type_ids")
"""What a column of the tokenizer's own is called."""
_BITS = (int, bool, float)
_LENGTHS, _ENDS = ("seq_lengths", "seq_lens"), ("cu_seqlens", "cu_seq_lens", "cu_seq_lens_q")
_NUMBERS = ("seq_idx", "document_ids", "doc_ids", "sequence_ids")
_LAYOUT = frozenset(("position_ids", "attention_mask", *_LENGTHS, *_ENDS, *_NUMBERS))
"""Columns that say where the documents of a row are, or its padding: the lengths of documents, where each ends, the
number of each token's document."""


@plugin
class Tokenized:
    """Rows with `input_ids`, used as they are; `labels`, or masks of zeros and ones, say what counts.

    Rows that were packed before (`seq_lengths`, `cu_seqlens` or `seq_idx`, or `position_ids` or `attention_mask` that
    tell documents apart) are taken apart into their documents, and padding (`attention_mask` of 0) is left out.
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
        known = {self.labels, self.weights, *masks, *_LAYOUT, *_NO_MARK}
        unread = tuple(name for name in columns if name not in known and _MARK.search(name))
        read = self._read if _LAYOUT.isdisjoint(columns) else self._read_documents
        formatter = functools.partial(read, masks)
        return functools.partial(self._refusing, formatter, unread) if unread else formatter

    def _refusing(self, read: Formatter, unread: Sequence[str], row: Row) -> Any:
        """What the row is read as, unless another column may say what counts, and no labels do."""
        for name in unread if row.get(self.labels) is None else ():
            if _is_mark(row[name], len(row[self.input_ids])):
                raise RowError(
                    f'"{name}" has a number for each token, and is not read.',
                    fix=f"If it says what counts: format: {{tokenized: {{completion_mask: {name}}}}} for 0 and 1, or "
                    f"{{tokenized: {{weights: {name}}}}} for shares. Else drop the column.",
                )
        return read(row)

    def _read_documents(self, masks: Sequence[str], row: Row) -> list[Example]:
        whole = self._read(masks, row).tokens
        assert whole is not None
        ids, labels, weights = whole.input_ids, whole.labels, whole.weights
        counted = ids if isinstance(ids, list) else list(ids)
        lengths = self._lengths(row, counted)
        positions = self._column(row, "position_ids", counted)
        attended = self._column(row, "attention_mask", counted, _BITS)
        return [
            Example(
                tokens=TokenizedRow(ids[first:last], labels and labels[first:last], weights and weights[first:last])
            )
            for first, last in documents_of(len(ids), lengths, positions, attended)
        ]

    def _lengths(self, row: Row, ids: list[int]) -> list[int] | None:
        """The lengths of the row's documents, from the first column that tells them; None where none does."""
        for name in (name for name in (*_LENGTHS, *_ENDS) if row.get(name) is not None):
            found = _numbers(row[name], name)
            if name in _LENGTHS:
                return found
            return [last - first for first, last in itertools.pairwise(found if found[:1] == [0] else [0, *found])]
        for name in (name for name in _NUMBERS if row.get(name) is not None):
            numbers = self._column(row, name, ids) or []
            return [len(list(some)) for _, some in itertools.groupby(numbers)]
        return None

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


def _is_mark(value: Any, length: int) -> bool:
    """Whether it is a list of as many numbers."""
    values = value.tolist() if hasattr(value, "tolist") else value
    return isinstance(values, (list, tuple)) and len(values) == length > 0 and all(type(one) in _BITS for one in values)
