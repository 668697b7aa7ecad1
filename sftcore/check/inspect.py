"""Inspects rows for a report: with only the format, or with a tokenizer in the run's own pipeline."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, frozen

from sftcore.check.format import FormatChoice, format_for
from sftcore.check.text import special_text_pattern
from sftcore.config.setup import Setup
from sftcore.core.errors import RowError
from sftcore.core.types import Row
from sftcore.data.format import RowReader, reader_for
from sftcore.data.pipeline import Inspected

if TYPE_CHECKING:
    from sftcore.data.pipeline import Pipeline
    from sftcore.data.sets import DataPreparation


@frozen
class Inspector:
    """Inspects the rows of one file; without a `pipeline`, nothing is tokenized."""

    choice: FormatChoice
    reader: RowReader
    pipeline: Pipeline | None = None
    tokenizer: Any = None
    special: re.Pattern[str] | None = None
    max_length: int | None = None

    def inspect(self, rows: Sequence[Row], numbers: Sequence[int]) -> list[Inspected]:
        """The outcome of each row.

        Raises:
            SFTCoreError: the tokenizer cannot handle rows of this kind.
        """
        if self.pipeline is not None:
            return self.pipeline.inspect(rows, numbers)
        found: list[Inspected] = []
        for number, row in zip(numbers, rows, strict=True):
            try:
                examples = self.reader.read(row, number)
                found += [Inspected(number, example, None, None, 0, 0, "", ()) for example in examples]
                if not examples:
                    found.append(Inspected(number, None, None, None, 0, 0, self.reader.nothing, ()))
            except RowError as error:
                found.append(Inspected(number, None, error, None, 0, 0, "", ()))
        return found

    def count(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text alone, or 0 if nothing is tokenized."""
        if self.tokenizer is None or not texts:
            return [0] * len(texts)
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]


@define
class Inspectors:
    """Makes the inspector of a file from its columns.

    `prepare` provides tokenizer and pipelines. It is called late, because importing torch takes seconds, and files
    without a usable row are reported before that. The name of the set decides how it is packed: `eval_packing` applies
    if it begins with "eval".
    """

    setup: Setup
    prepare: Callable[[Setup], DataPreparation] | None = None
    name: str = "train"

    def open(self, columns: Sequence[str], where: str, rows: Callable[[], Sequence[Row]] = tuple) -> Inspector:
        """The inspector for rows with these columns.

        Raises:
            DataError, ConflictError: no format reads them, or several do.
            SFTCoreError: the tokenizer cannot be loaded.
        """
        choice = format_for(self.setup, columns, where, rows)
        reader = reader_for(choice.bound, columns, where, self.setup.plugins, self.setup.plan.settings)
        if self.prepare is None:
            return Inspector(choice, reader)
        preparation = self.prepare(choice.setup)
        tokenizer = preparation.tokenizer
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        special = special_text_pattern({*added, *tokenizer.all_special_tokens})
        pipeline = preparation.pipeline(list(columns), self.name)
        return Inspector(choice, reader, pipeline, tokenizer, special, preparation.max_length)

    def light(self, inspector: Inspector) -> Inspector:
        """This inspector without its tokenizer; those that are opened later have none either."""
        self.prepare = None
        return Inspector(inspector.choice, inspector.reader)
