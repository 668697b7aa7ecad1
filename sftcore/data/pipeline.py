"""The data pipeline: format, render, tokenize, mask, truncate; the same for map-style sets, streams and reports."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import evolve, frozen

from sftcore.chat.content import with_calls_as_text
from sftcore.chat.conversation import CallLeftOutError
from sftcore.chat.render import Rendered, Renderer
from sftcore.chat.spans import TurnSpan
from sftcore.core.door import Handed
from sftcore.core.errors import ConflictError, DataError, RowError, TemplateStoppedError
from sftcore.core.types import Example, Row, TokenizedRow
from sftcore.data.account.outcomes import digests_of
from sftcore.data.columns import TokenColumns, Truncation
from sftcore.data.format import RowReader
from sftcore.data.images.expand import Expander
from sftcore.data.images.pictures import Picture, documents_column
from sftcore.data.images.reference import size_of
from sftcore.data.media.expansion import with_media, with_own_media
from sftcore.data.media.modality import SeenMedium
from sftcore.data.media.video import VIDEO
from sftcore.data.rules.first_row import doubts
from sftcore.data.rules.long_rows import CUT, SPLIT, TOO_LONG, LongRule
from sftcore.data.rules.system_prompt import with_system_prompt
from sftcore.data.rules.well_formed import fault_in
from sftcore.data.tokenize import OVERLAPS_EDGE, Encoded, Tokenizer, token_range
from sftcore.rows.images import with_own_images
from sftcore.util.warned import warn_of_plugin

if TYPE_CHECKING:
    import pyarrow as pa

Content: TypeAlias = "Rendered | TokenizedRow | None"

NOTHING_SUPERVISED = "no supervised token"
NOTHING_LEFT = "no supervised token left after truncation"
IMAGE_CUT = "an image would be cut at max_length"
FIRST_FRAME = "of an animation or a file with several pages, the first picture is read"

OUTCOME = ("row", "tokens_in", "tokens_cut", "supervised", "dropped", "notes", "digest")
"""Columns that say what became of an example; in tables their names begin with an underscore."""


_LONGEST = 2**26
"""The most characters of one row: tokenizers take some hundred bytes for each, and crash if memory runs out."""


@frozen
class Inspected:
    """What the run would make of one example of a row.

    `example` is None if the format refused the row, or if this is a further piece of a row that was split, and `row` is
    None if any step refused it; `error` says which and why.
    `row` is the example after truncation, always with labels. `dropped` says why the run would drop it, or is empty.
    `pictures` are the example's images, `media` its other media, `turns` the assistant's turns in it.
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
    turns: tuple[TurnSpan, ...] = ()
    media: tuple[SeenMedium, ...] = ()


@frozen
class Pipeline:
    """Turns raw rows into token rows, a batch at a time. It is sent to worker processes, so it has no plugin manager.

    `numbering` holds the numbers of the rows if they differ from their indices (see sftcore.data.source.load). `meant`
    marks nulls that were written, if a column holds JSON (see sftcore.data.nulls).
    `vocabulary` is how many tokens the model has; rows that come as tokens hold none beyond it. `long_rows` says which
    rows are not cut to `max_length`, but dropped, split or refused.
    `system_prompt` is put before conversations that have none.
    An `expander`, for a vision-language model, adds the column `documents` (see sftcore.data.images.pictures).
    """

    reader: RowReader
    renderer: Renderer
    tokenizer: Tokenizer
    max_length: int | None = None
    truncation: Truncation = "keep_start"
    expander: Expander | None = None
    numbering: Sequence[int] | None = None
    meant: Callable[[Row], Row] | None = None
    vocabulary: int | None = None
    long_rows: LongRule = CUT
    system_prompt: str = ""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why a row may be dropped."""
        return (NOTHING_SUPERVISED, NOTHING_LEFT, IMAGE_CUT, TOO_LONG, self.reader.nothing)

    def __call__(self, batch: pa.Table | Mapping[str, list[Any]], numbers: Sequence[int]) -> pa.Table:
        """Turn a batch of raw rows and their numbers into token rows with the outcome of each example.

        Raises:
            RowError: the format, the template or the mask refuses a row; names the data set and the row.
        """
        return self.encode(*self.completed(self.read(rows_of(batch), numbers)))

    def read(self, rows: Sequence[Row], numbers: Sequence[int]) -> list[tuple[int, Content]]:
        """Each example as a text with spans, or as the tokens that it holds; None for a row without examples."""
        found: list[tuple[int, Content]] = []
        if self.meant is not None:
            rows = list(map(self.meant, rows))
        first = copy.deepcopy(rows[0]) if rows and numbers[0] == 0 else None
        if self.numbering is not None:
            numbers = [self.numbering[number] for number in numbers]
        with nullcontext() if first is None else self.reader.watched():
            for number, row in zip(numbers, rows, strict=True):
                examples = self._examples(row, number)
                found += [(number, self._content(number, *one)) for one in examples] or [(number, None)]
        if first is not None and _written(first) != _written(rows[0]) and isinstance(self.reader.formatter, Handed):
            warn_of_plugin(f"{self.reader.named} changes the rows that it reads: it should make new values instead.")
        if first is not None and not self.reader.is_own:
            again = [self._content(numbers[0], *one) for one in self._examples(first, numbers[0])]
            before = [content for _, content in found[: max(1, len(again))] if content is not None]
            for doubt in doubts(before, again):
                warn_of_plugin(f"{self.reader.named} {doubt}.")
        return found

    def completed(self, contents: Sequence[tuple[int, Content]]) -> tuple[Sequence[tuple[int, Content]], list[Encoded]]:
        """The contents with what their images say of themselves, and their tokens; this may run in another thread.

        Raises:
            RowError: an image is damaged; names the data set and the row.
        """
        if self.expander is not None:
            contents = [(number, self._looked_at(number, content)) for number, content in contents]
        return contents, self.tokenize(contents)

    def _looked_at(self, number: int, content: Content) -> Content:
        """The content, whose images are whole, with a note if one of them is the first of several pictures."""
        if not isinstance(content, Rendered) or not content.images or self.expander is None:
            return content
        try:
            several = self.expander.most_frames(content.images) > 1
        except RowError as error:
            raise error.at(self.reader.where, number) from None
        return evolve(content, notes=(*content.notes, FIRST_FRAME)) if several else content

    def tokenize(self, contents: Sequence[tuple[int, Content]]) -> list[Encoded]:
        """Tokenize the contents that are texts."""
        return self.tokenizer.encode([content for _, content in contents if isinstance(content, Rendered)])

    def encode(self, contents: Sequence[tuple[int, Content]], encoded: Sequence[Encoded]) -> pa.Table:
        """Tokens, labels and weights of these examples after truncation, with the outcome of each."""
        import pyarrow as pa

        whole, kept, origins, faults, dropped, notes = self._outcome([content for _, content in contents], encoded)
        if fault := next((one for one in faults.items() if self.long_rows.choice != "refuse"), None):
            raise fault[1].at(self.reader.where, contents[fault[0]][0])
        contents = [contents[i] for i in origins]
        lengths = whole.lengths
        outcome = {
            "_row": pa.array([number for number, _ in contents], pa.int64()),
            "_tokens_in": pa.array(lengths, pa.int64()),
            "_tokens_cut": pa.array(lengths - kept.lengths, pa.int64()),
            "_supervised": pa.array(kept.num_supervised(), pa.int64()),
            "_dropped": pa.array(dropped, pa.string()),
            "_notes": pa.array(notes, pa.list_(pa.string())),
            "_digest": pa.array(
                digests_of(whole.input_ids, whole.offsets, (_shows_something(one) for _, one in contents))
            ),
        }
        pictures = {} if self.expander is None else {"documents": documents_column(contents)}
        return pa.table({**kept.to_arrow(), **pictures, **outcome})

    def inspect(self, rows: Sequence[Row], numbers: Sequence[int]) -> list[Inspected]:
        """The outcome of each row; an error that would stop the run is returned, not raised."""
        found: list[Inspected] = []
        pending: list[tuple[int, Example | None, Content]] = []
        if self.meant is not None:
            rows = list(map(self.meant, rows))
        for number, row in zip(numbers, rows, strict=True):
            example: Example | None = None
            try:
                examples = self._examples(row, number)
                for example, note in examples:
                    content = self._looked_at(number, self._content(number, example, note))
                    pending.append((number, example, content))
            except RowError as error:
                found.append(Inspected(number, example, error, None, 0, 0, "", ()))
                continue
            if not examples:
                pending.append((number, None, None))
        encoded = self.tokenize([(number, content) for number, _, content in pending])
        whole, kept, origins, faults, dropped, notes = self._outcome([content for _, _, content in pending], encoded)
        of_texts = iter(encoded)
        encodings = [next(of_texts)[1] if isinstance(content, Rendered) else None for *_, content in pending]
        for i, origin in enumerate(origins):
            number, example, content = pending[origin]
            if origin in faults:
                fault = faults[origin].at(self.reader.where, number)
                found.append(Inspected(number, example, fault, None, int(whole.lengths[i]), 0, "", ()))
                continue
            if i and origins[i - 1] == origin:
                example = None
            length = int(whole.lengths[i])
            cut = length - int(kept.lengths[i])
            pictures = self._pictures(content, encodings[origin]) if isinstance(content, Rendered) else ()
            media = _media(content, encodings[origin], pending[origin][1]) if isinstance(content, Rendered) else ()
            outcome = kept.row(i), length, cut, dropped[i] or "", notes[i], pictures, getattr(content, "turns", ())
            found.append(Inspected(number, example, None, *outcome, media))
        return sorted(found, key=lambda one: one.number)

    def _pictures(self, content: Rendered, encoding: Any) -> tuple[Picture, ...]:
        if not content.image_spans or self.expander is None:
            return ()
        sizes = (size_of(image, self.expander.max_pixels) for image in content.images)
        spans = (span for span in content.image_spans if span not in content.media_spans)
        ranges = (token_range(encoding, span) for span in spans)
        found = zip(content.images, sizes, ranges, strict=True)
        return tuple(Picture(image, *size, *tokens) for image, size, tokens in found)

    def _examples(self, row: Row, number: int) -> list[tuple[Example, str]]:
        """The examples of a row as the run's settings make them, each with a note on what they did, or none."""
        found = self.reader.read(row, number)
        if self.expander is not None:
            found = self._with_own(found, number)
        if not self.system_prompt:
            return [(example, "") for example in found]
        return [with_system_prompt(example, self.system_prompt) for example in found]

    def _with_own(self, examples: Sequence[Example], number: int) -> list[Example]:
        """The examples with the images and videos of their messages' parts, which formats of texts leave there."""
        assert self.expander is not None
        try:
            found = (with_own_media(one, VIDEO, self.expander.processor) for one in examples)
            return list(map(with_own_images, found))
        except RowError as error:
            raise error.at(self.reader.where, number) from None

    def _content(self, number: int, example: Example, note: str = "") -> Content:
        tokens = example.tokens
        if what := fault_in(example):
            given = "an example" if tokens is None else "tokens"
            text = f"{self.reader.named} gave {given} that cannot be read: {what}."
            raise RowError(text).at(self.reader.where, number)
        if tokens is not None:
            self._refuse_unknown(number, tokens)
            return tokens
        try:
            rendered = self._rendered(example)
            if note:
                rendered = evolve(rendered, notes=(*rendered.notes, note))
            if rendered.thoughtless:
                raise self.renderer.refusal_of_thoughts(example, rendered)
            if len(rendered.text) > _LONGEST:
                raise RowError(
                    f"its text has {len(rendered.text):,} characters, but at most {_LONGEST:,} can be tokenized.",
                    fix="Split it into several rows.",
                )
            if not rendered.text.isascii():
                rendered.text.encode()
            return rendered
        except (RowError, TemplateStoppedError) as error:
            if isinstance(error, CallLeftOutError) and self.reader.calls_as_text and self._takes_text(example):
                error.fix += f" Or keep the calls as text: {self.reader.calls_as_text}."
            raise error.at(self.reader.where, number) from None
        except (DataError, ConflictError) as error:
            error.where = error.where or self.reader.where
            raise
        except UnicodeEncodeError as error:
            text = f"{self.reader.named} gave a text with half a surrogate pair, which is not a character."
            raise RowError(text, fix="Correct or delete it.").at(self.reader.where, number) from error

    def _refuse_unknown(self, number: int, row: TokenizedRow) -> None:
        """Refuse ids that the model has no embedding for, which would fail at the first step."""
        for name, ids in (("input_ids", row.input_ids), ("labels", row.labels)):
            if self.vocabulary is not None and ids is not None and len(ids) and max(ids) >= self.vocabulary:
                raise RowError(
                    f'"{name}" holds {max(ids)}, but the vocabulary has {self.vocabulary:,} tokens.',
                    fix="Tokenize the rows with the tokenizer of this model.",
                ).at(self.reader.where, number)

    def _takes_text(self, example: Example) -> bool:
        """Whether the row can be rendered with the calls as words."""
        try:
            self._rendered(with_calls_as_text(example))
        except DataError:
            return False
        return True

    def _rendered(self, example: Example) -> Rendered:
        """The example as text, with the tokens of its images and other media."""
        if example.media:
            self._refuse_keep_end()
            return with_media(self.expander, self.renderer, example)
        if self.expander is None or not self.expander.reads_images:
            if example.images:
                kind = type(self.renderer.tokenizer).__name__
                raise RowError(
                    f"the rows have images, but the model reads only text: {kind} is not a vision-language processor.",
                    fix="Use a vision-language model with its processor, or remove the images.",
                )
            return self.renderer.render(example)
        if example.images:
            self._refuse_keep_end()
        sources = self.expander.sources(example.images)
        return self.expander.expand(self.renderer.render(self.expander.with_placeholders(example)), sources)

    def _refuse_keep_end(self) -> None:
        if self.truncation == "keep_end" and self.max_length is not None:
            raise ConflictError(
                "truncation_mode keep_end would cut off images, most of which are at the start of a row.",
                fix="Set truncation_mode: keep_start, or max_length: null.",
            )

    def _outcome(
        self, contents: Sequence[Content], encoded: Sequence[Encoded]
    ) -> tuple[TokenColumns, TokenColumns, Sequence[int], dict[int, RowError], list[str | None], list[tuple[str, ...]]]:
        """The rows before and after truncation, and which content each is of; errors of contents that are refused.

        For each row, the reason to drop it, or None, and its notes.
        """
        given, overlaps_edge = self.tokenizer.columns(contents, encoded)
        lengths = given.lengths
        faults = self.long_rows.faults(contents, lengths)
        whole, origins = self.long_rows.split(given)
        kept = whole.truncated(self.max_length, self.truncation)
        before, after = whole.num_supervised(), kept.num_supervised()
        of_texts = iter(encoded)
        encodings = [next(of_texts)[1] if isinstance(content, Rendered) else None for content in contents]
        dropped: list[str | None] = []
        notes: list[tuple[str, ...]] = []
        for i, origin in enumerate(origins):
            content, length = contents[origin], int(whole.lengths[i])
            if origin in faults or self.long_rows.drops(length):
                dropped.append(TOO_LONG)
            elif self._cuts_image(content, encodings[origin], length):
                dropped.append(IMAGE_CUT)
            elif content is None:
                dropped.append(self.reader.nothing)
            elif not after[i]:
                dropped.append(NOTHING_LEFT if before[i] else getattr(content, "nothing", "") or NOTHING_SUPERVISED)
            else:
                dropped.append(None)
            if i and origins[i - 1] == origin:
                notes.append(())  # what is said of a row counts it once
                continue
            said = getattr(content, "notes", ()), [OVERLAPS_EDGE] if overlaps_edge[origin] else []
            notes.append((*said[0], *said[1], *([SPLIT] if length < lengths[origin] else [])))
        return whole, kept, origins, faults, dropped, notes

    def _cuts_image(self, content: Content, encoding: Any, length: int) -> bool:
        """Whether truncation would cut an image of this text off or apart."""
        limit = self.max_length
        if limit is None or length <= limit or not isinstance(content, Rendered) or not content.image_spans:
            return False
        return token_range(encoding, content.image_spans[-1])[1] > limit


def _shows_something(content: Content) -> bool:
    """Whether its tokens do not say all that it is, because images or other media stand behind some of them."""
    return isinstance(content, Rendered) and bool(content.images or content.media)


def _media(content: Rendered, encoding: Any, example: Example | None) -> tuple[SeenMedium, ...]:
    modalities = {} if example is None else {one.modality.name: one.modality for one in example.media}
    if not modalities:
        return ()
    found = zip(content.media, content.media_spans, strict=True)
    return tuple(SeenMedium(modalities[one["modality"]], one, *token_range(encoding, span)) for one, span in found)


def _written(row: Row) -> str:
    """The row as a text, without where its objects are in memory, which differs between a picture and its copy."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", str(row))


def rows_of(batch: pa.Table | Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """The rows of a batch as mappings."""
    if not isinstance(batch, Mapping):
        found: list[dict[str, Any]] = batch.to_pylist()
        return found
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
