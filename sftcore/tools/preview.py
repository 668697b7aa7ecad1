"""Show one row as the model will see it, with its supervised tokens marked: the run's own pipeline without weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
from attrs import define, field, frozen

from sftcore.check.format import FormatChoice, format_for
from sftcore.config.recipe import Recipe
from sftcore.config.setup import Setup, check, set_up_recipe
from sftcore.core.errors import DataError, RecipeError, nearest
from sftcore.core.visible import visible
from sftcore.data.images.pictures import DOCUMENTS, Picture
from sftcore.data.media.modality import SeenMedium
from sftcore.data.mixing.mixture import Mixture, with_format
from sftcore.data.source.several import GivenSet, GivenSource, inspect_set, load_set, rename, window_in
from sftcore.report.pieces import Piece, documents_of, part_of, pieces_of, with_media

if TYPE_CHECKING:
    from datasets import Dataset

    from sftcore.chat.spans import TurnSpan
    from sftcore.config.data.section import SourceSection
    from sftcore.config.sft_config import SFTConfig
    from sftcore.data.pipeline import Inspected, Pipeline
    from sftcore.data.sets import DataPreparation
    from sftcore.data.source.load import Source

_NAME = "train_dataset"
CUT_SHOWN = 200
"""How many of the tokens that max_length cuts away are shown."""


@frozen
class Document:
    """One document of a packed block, or the only document of a row: its start, its length and its pieces."""

    start: int
    length: int
    pieces: tuple[Piece, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The document's images."""
        return tuple(piece.picture for piece in self.pieces if piece.picture is not None)

    @property
    def media(self) -> tuple[SeenMedium, ...]:
        """The document's other media, such as videos."""
        return tuple(piece.medium for piece in self.pieces if piece.medium is not None)

    @property
    def segments(self) -> tuple[Piece, ...]:
        """The pieces, with consecutive ones of the same weight and marks joined."""
        found = []
        alike = itertools.groupby(self.pieces, key=lambda piece: (piece.weight, piece.special, piece.cut))
        for _, group in alike:
            pieces = list(group)
            text = "".join(piece.text for piece in pieces)
            ids = tuple(token for piece in pieces for token in piece.ids)
            found.append(attrs.evolve(pieces[0], text=text, ids=ids, picture=None, medium=None))
        return tuple(found)


@frozen
class Preview:
    """A row, or a packed block, in which case `capacity` is the block's length.

    `example` numbers the examples made from a row. `cut` counts the tokens that max_length cuts away, of which up to
    CUT_SHOWN are among the pieces. `dropped` is the reason why a run would drop it. `notes` are sentences about it,
    `proof` others on where each turn of the assistant begins and ends, and whether generation stops there.
    """

    row: int
    example: int
    documents: tuple[Document, ...]
    cut: int = 0
    dropped: str = ""
    notes: tuple[str, ...] = ()
    proof: tuple[str, ...] = ()
    capacity: int | None = None

    @property
    def segments(self) -> tuple[Piece, ...]:
        """All segments of all documents."""
        return tuple(segment for document in self.documents for segment in document.segments)

    @property
    def caption(self) -> str:
        """The number of the row, and how many tokens it has, are supervised and are cut away."""
        total = sum(document.length for document in self.documents)
        supervised = sum(len(segment.ids) for segment in self.segments if segment.weight and not segment.cut)
        if self.capacity is not None:
            count = len(self.documents)
            return (
                f"block {self.row}: {total} of {self.capacity} tokens in {count} document{'' if count == 1 else 's'}, "
                f"{supervised} supervised"
            )
        number = f"row {self.row}" + (f", example {self.example}" if self.example else "")
        cut = f", {self.cut} more cut away" if self.cut else ""
        return f"{number}: {total} tokens, {supervised} supervised{cut}"


@define
class PreparationFactory:
    """Makes the data preparation of a recipe for any setup; the tokenizer is loaded only once."""

    recipe: Recipe
    _loaded: tuple[SFTConfig, Any, Any] | None = field(default=None, init=False)

    def __call__(self, setup: Setup) -> DataPreparation:
        """The data preparation, with the same settings as in a run.

        Raises:
            ModelError: the tokenizer cannot be loaded.
        """
        from sftcore.config.sft_config import SFTConfig
        from sftcore.data.sets import DataPreparation
        from sftcore.model.processor import load_processor
        from sftcore.model.skeleton import skeleton_of
        from sftcore.train.arguments import max_length_of, positions_for, prepare_tokenizer
        from sftcore.train.run import config_of

        if self._loaded is None:
            args = SFTConfig(**{**config_of(self.recipe), "output_dir": "unused"})
            processor = load_processor(setup.plan, setup.plugins)
            self._loaded = args, processor, prepare_tokenizer(processor, args)[0]
        args, processor, tokenizer = self._loaded
        setup = attrs.evolve(setup, plan=attrs.evolve(setup.plan, settings=args.to_settings()))
        name = setup.plan.model.name
        positions = positions_for(skeleton_of(name, setup.plan), name, setup.plan)
        return DataPreparation(setup, tokenizer, max_length_of(args, tokenizer, positions), processor=processor)


# --- From a recipe to a row -----------------------------------------------------------------------------------------
def preview(recipe: Recipe, row: int, source_name: str | None = None) -> list[Preview]:
    """Row `row` of the training set, counted from 0, as the recipe's own pipeline prepares it; if packed, block `row`.

    Of several sources it is row `row` of the one that is named, or of the first; packed, a block of the mixture.
    If no format reads the columns, the mapping that a format suggests is used, and a note says so.

    Raises:
        RecipeError: there is no such row or source.
        SFTCoreError: whatever would stop the run at this row.
    """
    from sftcore.data.nulls import meant_nulls
    from sftcore.data.unread import said, unread_of

    setup = set_up_recipe(recipe)
    check(setup, needs_weights=False)
    sections = recipe.data.sources
    if len(sections) > 1 and source_name is None and recipe.training.get("packing"):
        return [_block_of_mixture(recipe, setup, row)]
    section = _section_named(sections, source_name)
    source, window, choice = _source_and_format(section, with_format(setup, section.format))
    given = GivenSource(section, source, window)
    loaded = load_set(GivenSet((given,)))
    dataset = loaded.sources[0].dataset if isinstance(loaded, Mixture) else loaded
    label = given.label
    first = list(itertools.islice(dataset, 20))
    choice = choice or format_for(with_format(setup, section.format), dataset.column_names, label, lambda: first)
    notes = (f"Read with a suggested mapping; a run needs this line: {choice.line}",) if choice.line else ()
    notes = (*([f"Of {label}."] if len(sections) > 1 else []), *notes)
    preparation = PreparationFactory(recipe)(choice.setup)
    try:
        pipeline = attrs.evolve(
            preparation.pipeline(dataset.column_names, _NAME), meant=meant_nulls(getattr(dataset, "features", None))
        )
        if left := said(unread_of(pipeline.reader, dataset)):
            notes = (*notes, f"{left[:1].upper()}{left[1:]}.")
        if preparation.setup.plan.settings.get("packing"):
            return [_block(preparation, dataset, row, label, notes)]
        _refuse_beyond(row, len(dataset), "row", label)
        return _row(pipeline, dataset[row], row, preparation.tokenizer, notes)
    except DataError as error:
        # the preparation names the set by its argument, but the user knows it by its file
        error.where = error.where.replace(_NAME, label)
        raise


def _section_named(sections: Sequence[SourceSection], name: str | None) -> SourceSection:
    if name is None:
        return sections[0]
    names = [one.name for one in sections]
    if name not in names:
        what = f'there is no source "{name}".{nearest(name, names)}'
        raise RecipeError(what, where="--source", fix=f"Sources: {', '.join(names)}.")
    return sections[names.index(name)]


def _block_of_mixture(recipe: Recipe, setup: Setup, row: int) -> Preview:
    """Block `row` of several sources, packed as the run packs them."""
    given = inspect_set(recipe.data.sources, setup, recipe.data.stop)
    preparation = PreparationFactory(recipe)(setup)
    try:
        blocks = preparation.prepare(load_set(given), _NAME)
    except DataError as error:
        rename(error, {_NAME: given}, lambda files, number: None)
        raise
    _refuse_beyond(row, len(blocks), "block", given.label)
    documents = tuple(
        Document(start, len(part.input_ids), tuple(pieces_of(part, preparation.tokenizer)))
        for start, part in documents_of(blocks[row])
    )
    return Preview(row, 0, documents, notes=(f"Of {given.label}.",), capacity=preparation.max_length)


def _source_and_format(section: SourceSection, setup: Setup) -> tuple[Source, range | None, FormatChoice | None]:
    """Where the rows are, which of them are read, and their format if local files can be sampled.

    So errors appear before anything loads.

    The sampled rows are not checked, so that a row can be shown even if another one is faulty.
    """
    from sftcore.data.format import reader_for
    from sftcore.data.source.files import first_rows, local_files
    from sftcore.data.source.load import SAMPLE, Source

    files = local_files(section.path, section.sample_by)
    if files is None:
        return Source(str(section.path), None), None, None
    window = window_in(section, files)
    sample = first_rows(files, min(SAMPLE, section.rows or SAMPLE), window.start if window else 0)
    if section.columns is not None:
        sample = [(place, {key: row[key] for key in section.columns if key in row}) for place, row in sample]
    if not sample:
        return Source(files.label, files), window, None
    columns = list(dict.fromkeys(key for _, row in sample for key in row))
    choice = format_for(setup, columns, files.label, lambda: [row for _, row in sample])
    reader = reader_for(choice.bound, columns, files.label, setup.plugins, setup.plan.settings)
    return Source(files.label, files, reader), window, choice


def _refuse_beyond(row: int, count: int, unit: str, label: str) -> None:
    if not 0 <= row < count:
        fix = f"The {unit}s are numbered from 0 to {count - 1}." if count else ""
        raise RecipeError(f"there is no {unit} {row}.", where=label, fix=fix)


def _row(pipeline: Pipeline, values: dict[str, Any], row: int, tokenizer: Any, notes: tuple[str, ...]) -> list[Preview]:
    kept = pipeline.inspect([values], [row])
    whole = attrs.evolve(pipeline, max_length=None).inspect([values], [row])
    from_end = pipeline.truncation == "keep_end"
    return [
        _example(i, one, full, tokenizer, from_end, notes)
        for i, (one, full) in enumerate(zip(kept, whole, strict=True))
    ]


def _example(
    index: int, one: Inspected, full: Inspected, tokenizer: Any, from_end: bool, notes: tuple[str, ...]
) -> Preview:
    if one.error is not None:
        raise one.error
    assert one.row is not None
    assert full.row is not None
    length = len(one.row.input_ids)
    pieces = pieces_of(one.row, tokenizer)
    if one.tokens_cut:
        cut_span = (
            slice(max(one.tokens_cut - CUT_SHOWN, 0), one.tokens_cut) if from_end else slice(length, length + CUT_SHOWN)
        )
        cut_pieces = pieces_of(part_of(full.row, cut_span), tokenizer, cut_span.start)
        cut = [attrs.evolve(piece, cut=True) for piece in cut_pieces]
        pieces = [*cut, *pieces] if from_end else [*pieces, *cut]
    document = Document(0, length, tuple(with_media(pieces, full.pictures, full.media)))
    notes = (*notes, *(f"{note[:1].upper()}{note[1:]}." for note in one.notes))
    return Preview(one.number, index, (document,), one.tokens_cut, one.dropped, notes, _proof(one.turns, tokenizer))


def _proof(turns: Sequence[TurnSpan], tokenizer: Any) -> tuple[str, ...]:
    if not turns:
        return ()
    from sftcore.chat.stops import stops_of_calls, turn_end

    stops = {turn_end(tokenizer), tokenizer.eos_token, *stops_of_calls(tokenizer)}
    lines = []
    for turn in turns:
        ended = f'ends with "{turn.ender}"' if turn.ender else "ends with nothing"
        header = visible(turn.header).replace("\n", "⏎")
        stop = "" if not turn.ender else ", a stop" if turn.ender in stops else ", no stop"
        lines.append(f'message {turn.message}: begins behind "{header}", {ended}{stop}')
    return tuple(lines)


def _block(preparation: DataPreparation, dataset: Dataset, row: int, label: str, notes: tuple[str, ...]) -> Preview:
    blocks = preparation.prepare(dataset, _NAME)
    pipeline = preparation.pipeline(dataset.column_names, _NAME)
    _refuse_beyond(row, len(blocks), "block", label)
    block = blocks[row]
    documents = []
    carried_along = block.get(DOCUMENTS) or [None] * len(block["seq_lengths"])
    for (start, part), carried in zip(documents_of(block), carried_along, strict=True):
        pieces = pieces_of(part, preparation.tokenizer)
        if carried is not None and (carried["images"] or carried["media"]):
            made = _made(pipeline, dataset, carried)
            pieces = with_media(pieces, made.pictures, made.media)
        documents.append(Document(start, len(part.input_ids), tuple(pieces)))
    return Preview(row, 0, tuple(documents), notes=notes, capacity=preparation.max_length)


def _made(pipeline: Pipeline, dataset: Dataset, document: dict[str, Any]) -> Inspected:
    """The example of a document in a block, with its images and media, made once more from the row that it is of."""
    number = document["row"]
    made = pipeline.inspect([dataset[number]], [number])
    images, media = ([dict(one) for one in document[name]] for name in ("images", "media"))
    return next(
        one
        for one in made
        if [dict(picture.source) for picture in one.pictures] == images
        and [dict(medium.reference) for medium in one.media] == media
    )
