"""The way of the data: format, render, tokenize, mask, truncate. One function for map-style sets and streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore.data.format import RowReader
from sftcore.data.ledger import Ledger
from sftcore.data.render import Rendered, Renderer
from sftcore.data.tokenize import Tokenizer
from sftcore.data.truncate import Mode, num_supervised, truncate
from sftcore.errors import DataError, RowError
from sftcore.types import Example, TokenizedRow

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

_ROW, _IN, _CUT, _SUPERVISED, _DROPPED = "_row", "_tokens_in", "_tokens_cut", "_supervised", "_dropped"
_COLUMNS = ("input_ids", "labels", "weights")
NOTHING_SUPERVISED = "no supervised token"
NOTHING_LEFT = "no supervised token left after the cut"


@frozen
class Pipeline:
    """From raw rows to token rows, a batch at a time. It is sent to worker processes, so it holds no plugin manager."""

    reader: RowReader
    renderer: Renderer
    tokenizer: Tokenizer
    max_length: int | None = None
    truncation: Mode = "keep_start"

    def __call__(self, batch: Mapping[str, list[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
        """A batch of columns and the rows' numbers, to columns with what became of each example."""
        examples = [
            (number, example)
            for number, values in zip(numbers, zip(*batch.values(), strict=True), strict=True)
            for example in self.reader.read(dict(zip(batch, values, strict=True)), number)
        ]
        columns: dict[str, list[Any]] = {name: [] for name in (*_COLUMNS, _ROW, _IN, _CUT, _SUPERVISED, _DROPPED)}
        for (number, _), row in zip(examples, self._tokenized(examples), strict=True):
            self._append(columns, number, row)
        return columns

    def _tokenized(self, examples: Sequence[tuple[int, Example]]) -> list[TokenizedRow]:
        ready = {i: example.tokens for i, (_, example) in enumerate(examples) if example.tokens is not None}
        texts = [(i, self._rendered(number, example)) for i, (number, example) in enumerate(examples) if i not in ready]
        rows = dict(zip((i for i, _ in texts), self.tokenizer.rows([text for _, text in texts]), strict=True))
        return [ready[i] if i in ready else rows[i] for i in range(len(examples))]

    def _rendered(self, number: int, example: Example) -> Rendered:
        try:
            return self.renderer.render(example)
        except RowError as error:
            raise error.at(self.reader.where, number) from None
        except DataError as error:
            error.where = error.where or self.reader.where
            raise

    def _append(self, columns: dict[str, list[Any]], number: int, row: TokenizedRow) -> None:
        kept = truncate(row, self.max_length, self.truncation)
        supervised = num_supervised(kept)
        reason = ""
        if not supervised:
            reason = NOTHING_LEFT if num_supervised(row) else NOTHING_SUPERVISED
        columns["input_ids"].append(kept.input_ids)
        columns["labels"].append(kept.input_ids if kept.labels is None else kept.labels)
        columns["weights"].append(kept.weights)
        columns[_ROW].append(number)
        columns[_IN].append(len(row.input_ids))
        columns[_CUT].append(len(row.input_ids) - len(kept.input_ids))
        columns[_SUPERVISED].append(supervised)
        columns[_DROPPED].append(reason)


def prepare(dataset: Dataset, pipeline: Pipeline, *, name: str, num_proc: int | None = None) -> tuple[Dataset, Ledger]:
    """A map-style data set as token rows, and the ledger of it.

    Raises:
        RowError: a row that cannot be used, with its number.
        DataError: no row is left.
    """
    if len(dataset) == 0:
        raise DataError("the data set has no rows.", where=name)
    rows = dataset.map(
        pipeline,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        num_proc=num_proc,
        features=_features(),
        load_from_cache_file=False,
        desc=f"Preparing {name}",
    )
    ledger = _ledger(rows, name, pipeline.reader.label)
    kept = rows.select([i for i, reason in enumerate(rows[_DROPPED]) if not reason]) if ledger.dropped else rows
    if not ledger.rows_kept:
        raise DataError(
            f"no row is left: {'; '.join(ledger.lines()[1:])}.",
            where=name,
            fix="Raise max_length, or look at what is supervised.",
        )
    unused = ["weights"] if kept.data.column("weights").null_count == len(kept.data) else []
    return kept.remove_columns([_ROW, _IN, _CUT, _SUPERVISED, _DROPPED, *unused]), ledger


def prepare_stream(dataset: IterableDataset, pipeline: Pipeline) -> IterableDataset:
    """A stream as token rows, made as they are read; rows without supervised tokens are left out."""

    def kept(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        columns = pipeline(batch, numbers)
        chosen = [i for i, reason in enumerate(columns[_DROPPED]) if not reason]
        return {column: [columns[column][i] for i in chosen] for column in _COLUMNS}

    return dataset.map(kept, batched=True, with_indices=True, remove_columns=columns_of(dataset))


def columns_of(dataset: Dataset | IterableDataset) -> list[str]:
    """Column names, also of a stream whose features are not known."""
    if dataset.column_names is not None:
        return list(dataset.column_names)
    first = next(iter(dataset), None)
    if first is None:
        raise DataError("the data set has no rows.")
    return list(first)


def _features() -> Features:
    """The columns' types, said outright: a batch without weights would else decide that there are none."""
    from datasets import Features, List, Value

    tokens, number = List(Value("int32")), Value("int64")
    return Features(
        {
            "input_ids": tokens,
            "labels": tokens,
            "weights": List(Value("float32")),
            **dict.fromkeys((_ROW, _IN, _CUT, _SUPERVISED), number),
            _DROPPED: Value("string"),
        }
    )


def _ledger(rows: Dataset, name: str, label: str) -> Ledger:
    table = {column: rows[column][:] for column in (_ROW, _IN, _CUT, _SUPERVISED, _DROPPED)}
    dropped: dict[str, int] = {}
    first: dict[str, int] = {}
    for number, reason in zip(table[_ROW], table[_DROPPED], strict=True):
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
            first.setdefault(reason, number)
    kept = [not reason for reason in table[_DROPPED]]
    total = sum(table[_IN])
    cut = sum(gone for gone, keep in zip(table[_CUT], kept, strict=True) if keep)
    lost = sum(count for count, keep in zip(table[_IN], kept, strict=True) if not keep)
    return Ledger(
        name=name,
        format=label,
        rows_in=len(kept),
        rows_kept=sum(kept),
        rows_cut=sum(bool(gone) and keep for gone, keep in zip(table[_CUT], kept, strict=True)),
        tokens_in=total,
        tokens_kept=total - cut - lost,
        tokens_cut=cut,
        tokens_dropped=lost,
        tokens_supervised=sum(count for count, keep in zip(table[_SUPERVISED], kept, strict=True) if keep),
        dropped=dropped,
        first_dropped=first,
    )
