"""The data pipeline: format, render, tokenize, mask, truncate; the same for map-style sets, streams and reports."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from attrs import frozen

from sftcore.chat.render import Rendered, Renderer
from sftcore.core.errors import ConflictError, DataError, RowError, TemplateStoppedError
from sftcore.core.types import Example, Row, TokenizedRow
from sftcore.data.columns import TokenColumns, Truncation
from sftcore.data.format import RowReader
from sftcore.data.images.expand import Expander, refuse_keep_end, refuse_without_vision
from sftcore.data.images.pictures import Picture, documents_column
from sftcore.data.images.reference import size_of
from sftcore.data.tokenize import OVERLAPS_EDGE, Encoded, Tokenizer, end_of_last_image, token_range

if TYPE_CHECKING:
    import pyarrow as pa

Content: TypeAlias = "Rendered | TokenizedRow | None"

NOTHING_SUPERVISED = "no supervised token"
NOTHING_LEFT = "no supervised token left after truncation"
IMAGE_CUT = "an image would be cut at max_length"
NO_EXAMPLE = "the format returned no example for this row"

OUTCOME = ("row", "tokens_in", "tokens_cut", "supervised", "dropped", "notes")
"""Columns that say what became of an example; in tables their names begin with an underscore."""


_LONGEST = 2**26
"""The most characters of one row: tokenizers take some hundred bytes for each, and crash if memory runs out."""


@frozen
class Inspected:
    """What the run would make of one example of a row.

    `example` is None if the format refused the row, and `row` is None if any step did; `error` says which and why.
    `row` is the example after truncation, always with labels. `dropped` says why the run would drop it, or is empty.
    `pictures` are the example's images.
    """

    number: int
    example: Example | None
    error: RowError | None
    row: TokenizedRow | None
    tokens_in: int
    tokens_cut: int
    dropped: str
    notes: tuple[str, ...]
    pictures: tuple[Picture, ...] = ()


@frozen
class Pipeline:
    """Turns raw rows into token rows, a batch at a time. It is sent to worker processes, so it has no plugin manager.

    `numbering` holds the numbers of the rows if they differ from their indices (see sftcore.data.source.numbering).
    An `expander`, for a vision-language model, adds the column `documents` (see sftcore.data.images.pictures).
    """

    reader: RowReader
    renderer: Renderer
    tokenizer: Tokenizer
    max_length: int | None = None
    truncation: Truncation = "keep_start"
    expander: Expander | None = None
    numbering: Sequence[int] | None = None

    def __call__(self, batch: pa.Table | Mapping[str, list[Any]], numbers: Sequence[int]) -> pa.Table:
        """Turn a batch of raw rows and their numbers into token rows with the outcome of each example.

        Raises:
            RowError: the format, the template or the mask refuses a row; names the data set and the row.
        """
        contents = self.read(rows_of(batch), numbers)
        return self.encode(contents, self.tokenize(contents))

    def read(self, rows: Sequence[Row], numbers: Sequence[int]) -> list[tuple[int, Content]]:
        """Each example as a text with spans, or as the tokens that it holds; None for a row without examples."""
        found: list[tuple[int, Content]] = []
        if self.numbering is not None:
            numbers = [self.numbering[number] for number in numbers]
        for number, row in zip(numbers, rows, strict=True):
            examples = self.reader.read(row, number)
            found += [(number, self._content(number, example)) for example in examples] or [(number, None)]
        return found

    def tokenize(self, contents: Sequence[tuple[int, Content]]) -> Encoded:
        """Tokenize the contents that are texts; this may run in another thread."""
        return self.tokenizer.encode([content for _, content in contents if isinstance(content, Rendered)])

    def encode(self, contents: Sequence[tuple[int, Content]], encoded: Encoded) -> pa.Table:
        """Tokens, labels and weights of these examples after truncation, with the outcome of each."""
        import pyarrow as pa

        whole, overlaps_edge = self._joined([content for _, content in contents], encoded)
        kept, dropped = self._cut(whole, contents, encoded)
        notes = [
            [*getattr(content, "notes", ()), *([OVERLAPS_EDGE] if overlapping else [])]
            for (_, content), overlapping in zip(contents, overlaps_edge, strict=True)
        ]
        lengths = whole.lengths
        outcome = {
            "_row": pa.array([number for number, _ in contents], pa.int64()),
            "_tokens_in": pa.array(lengths, pa.int64()),
            "_tokens_cut": pa.array(lengths - kept.lengths, pa.int64()),
            "_supervised": pa.array(kept.num_supervised(), pa.int64()),
            "_dropped": pa.array(dropped, pa.string()),
            "_notes": pa.array(notes, pa.list_(pa.string())),
        }
        pictures = {} if self.expander is None else {"documents": documents_column(contents)}
        return pa.table({**kept.to_arrow(), **pictures, **outcome})

    def inspect(self, rows: Sequence[Row], numbers: Sequence[int]) -> list[Inspected]:
        """The outcome of each row; an error that would stop the run is returned, not raised."""
        found: list[Inspected] = []
        pending: list[tuple[int, Example | None, Content]] = []
        for number, row in zip(numbers, rows, strict=True):
            example: Example | None = None
            try:
                examples = self.reader.read(row, number)
                for example in examples:
                    pending.append((number, example, self._content(number, example)))
            except RowError as error:
                found.append(Inspected(number, example, error, None, 0, 0, "", ()))
                continue
            if not examples:
                pending.append((number, None, None))
        contents = [(number, content) for number, _, content in pending]
        encoded = self.tokenize(contents)
        whole, overlaps_edge = self._joined([content for _, content in contents], encoded)
        kept, dropped = self._cut(whole, contents, encoded)
        encodings = iter(encoded.encodings or itertools.repeat(None))
        for i, (number, example, content) in enumerate(pending):
            notes = (*getattr(content, "notes", ()), *([OVERLAPS_EDGE] if overlaps_edge[i] else []))
            length = int(whole.lengths[i])
            cut = length - int(kept.lengths[i])
            pictures = self._pictures(content, next(encodings)) if isinstance(content, Rendered) else ()
            found.append(Inspected(number, example, None, kept.row(i), length, cut, dropped[i] or "", notes, pictures))
        return sorted(found, key=lambda one: one.number)

    def _pictures(self, content: Rendered, encoding: Any) -> tuple[Picture, ...]:
        if not content.image_spans or self.expander is None:
            return ()
        sizes = (size_of(image, self.expander.max_pixels) for image in content.images)
        ranges = (token_range(encoding, span) for span in content.image_spans)
        found = zip(content.images, sizes, ranges, strict=True)
        return tuple(Picture(image, *size, *tokens) for image, size, tokens in found)

    def _content(self, number: int, example: Example) -> Content:
        if example.tokens is not None:
            return example.tokens
        try:
            return _admitted(self._rendered(example))
        except (RowError, TemplateStoppedError) as error:
            raise error.at(self.reader.where, number) from None
        except (DataError, ConflictError) as error:
            error.where = error.where or self.reader.where
            raise

    def _rendered(self, example: Example) -> Rendered:
        """The example as text, with the tokens of its images."""
        if self.expander is None:
            if example.images:
                raise refuse_without_vision(self.renderer.tokenizer)
            return self.renderer.render(example)
        if example.images:
            refuse_keep_end(self.truncation, self.max_length)
        sources = self.expander.sources(example.images)
        return self.expander.expand(self.renderer.render(self.expander.with_placeholders(example)), sources)

    def _joined(self, contents: Sequence[Content], encoded: Encoded) -> tuple[TokenColumns, Any]:
        texts = [content for content in contents if isinstance(content, Rendered)]
        if len(texts) == len(contents):
            return self.tokenizer.columns(texts, encoded)
        ready = [content or TokenizedRow(()) for content in contents if not isinstance(content, Rendered)]
        rendered, overlaps_edge = self.tokenizer.columns(texts, encoded)
        where = np.argsort([not isinstance(content, Rendered) for content in contents], kind="stable")
        back = np.argsort(where)
        joined = TokenColumns.joined([rendered, TokenColumns.of(ready)]).select(back)
        return joined, np.concatenate([overlaps_edge, np.zeros(len(ready), bool)])[back]

    def _cut(
        self, whole: TokenColumns, contents: Sequence[tuple[int, Content]], encoded: Encoded
    ) -> tuple[TokenColumns, list[str | None]]:
        kept = whole.truncated(self.max_length, self.truncation)
        dropped = self._with_cut_images(whole, contents, encoded)
        before: Any = None
        for i in np.flatnonzero(kept.num_supervised() == 0).tolist():
            before = whole.num_supervised() if before is None else before
            if dropped[i]:
                continue
            if contents[i][1] is None:
                dropped[i] = NO_EXAMPLE
            else:
                dropped[i] = NOTHING_LEFT if before[i] else NOTHING_SUPERVISED
        return kept, dropped

    def _with_cut_images(
        self, whole: TokenColumns, contents: Sequence[tuple[int, Content]], encoded: Encoded
    ) -> list[str | None]:
        """For each row, the reason to drop it if truncation would cut one of its images off or apart."""
        reasons: list[str | None] = [None] * len(contents)
        limit = self.max_length
        if self.expander is None or limit is None:
            return reasons
        texts = (i for i, (_, content) in enumerate(contents) if isinstance(content, Rendered))
        for number, i in enumerate(texts):
            content: Any = contents[i][1]
            if content.image_spans and whole.lengths[i] > limit and encoded.encodings:
                needed = end_of_last_image(encoded.encodings[number], content)
                reasons[i] = IMAGE_CUT if needed > limit else None
        return reasons


def rows_of(batch: pa.Table | Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """The rows of a batch as mappings."""
    columns = (
        batch if isinstance(batch, Mapping) else {name: batch.column(name).to_pylist() for name in batch.column_names}
    )
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _admitted(rendered: Rendered) -> Rendered:
    if len(rendered.text) > _LONGEST:
        raise RowError(
            f"its text has {len(rendered.text):,} characters, but at most {_LONGEST:,} can be tokenized.",
            fix="Split it into several rows.",
        )
    return rendered
