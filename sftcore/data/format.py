"""Chooses the format that reads a data set, and wraps its formatter so that errors name the row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

from attrs import evolve, frozen

from sftcore.config.plugins.bound import bind
from sftcore.config.settings.kept_rows import kept_rows
from sftcore.config.setup import Setup
from sftcore.core.discovery import Catalog, PluginEntry, normalized
from sftcore.core.door import Handed
from sftcore.core.errors import (
    ConflictError,
    DataError,
    FaultyPluginError,
    RowError,
    SFTCoreError,
    nearest,
    quoted,
    said_by,
)
from sftcore.core.registry import ActivePlugins, Bound
from sftcore.core.types import AUTO, Example, Formatter, Plan, Row, Selection
from sftcore.data.kinds import preference_in, scores_in, sets_in, unreadable_in, with_filter, with_refusals
from sftcore.data.suggestions import Suggestion, spelled, suggested
from sftcore.util.process_state import left_as_found
from sftcore.util.warned import warn, warn_broken

_NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})
NO_EXAMPLE = "the format returned no example for this row"


@frozen
class RowReader:
    """A format bound to the columns of one data set, which `where` names in errors.

    `calls_as_text` is the line of a recipe by which the format keeps calls of tools as text, "" if it cannot. `nothing`
    is why a row may have no example.
    """

    label: str
    formatter: Formatter
    where: str
    calls_as_text: str = ""
    nothing: str = NO_EXAMPLE

    @property
    def named(self) -> str:
        """The plugin with its distribution and version, where the rows are read by one."""
        return self.formatter.origin.label if isinstance(self.formatter, Handed) else self.label

    @property
    def is_own(self) -> bool:
        """Whether no plugin of others reads the rows: sftcore's give tokens where a row has tokens alone."""
        whose = self.formatter
        return not isinstance(whose, Handed) or normalized(whose.origin.distribution) == __name__.partition(".")[0]

    def watched(self) -> AbstractContextManager[None]:
        """Around rows that are read: what a plugin changes for everything in the process is put back and told."""
        whose = self.formatter.origin.label if isinstance(self.formatter, Handed) else ""
        return left_as_found(f"{whose}, as it reads rows,") if whose else nullcontext()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around the preparation of rows: an error says which plugin of others has read them."""
        try:
            yield
        except DataError as error:
            if not self.is_own and self.named not in f"{error.what} {error.fix}":
                error.fix = f"{error.fix} The rows are read by {self.named}.".strip()
            raise

    def read(self, row: Row, number: int) -> list[Example]:
        """The examples of one row; rows are numbered from 0.

        Raises:
            RowError: the format raised an error; this one names the data set and the row.
        """
        try:
            found = self.formatter(row)
        except RowError as error:
            raise error.at(self.where, number) from None
        except Exception as error:  # a third party's function may raise anything, and the row must be named in any case
            faulty = error if isinstance(error, FaultyPluginError) else None
            cause = faulty.__cause__ if faulty and faulty.__cause__ else error
            if isinstance(cause, KeyError):
                what, fix = f"{self.label} needs the column {cause}.", f"The row has: {', '.join(map(str, row))}."
                if faulty is not None:
                    fix += f" The format is {faulty.origin.label} ({faulty.at})."
            elif faulty is not None:
                what, fix = faulty.what, faulty.fix
            else:
                what, fix = f"{self.label} failed: {said_by(error)}.", ""
            raise RowError(what, fix=fix).at(self.where, number) from cause
        return [found] if isinstance(found, Example) else list(found)


def choose_format(
    setup: Setup,
    columns: Sequence[str],
    where: str,
    *,
    rows: Callable[[], Sequence[Row]] = tuple,
    has_template: bool | None = None,
    in_python: bool = False,
) -> Bound:
    """The format of this data set: the one selected, or under `format: auto` the one that detects its columns.

    `rows` gives the first rows, on which suggestions are tried, and `has_template` says whether the tokenizer has a
    chat template, None where that is not known.

    Raises:
        UnreadColumnsError: no format detects the columns, or they are data that are not to be trained as they stand;
            the error shows formats that could read them after a mapping.
        ConflictError: several formats detect them.
    """
    plan, plugins, catalog = setup.plan, setup.plugins, setup.catalog
    columns = tuple(columns)
    named = [one for one in plugins.bound if one.selection.kind == "format"]
    if named:
        if named[0].implements("detects") and not _Candidate(named[0], plugins).asked("detects", columns):
            refuse_images(columns, where)
        return named[0]
    entries = catalog.of_kind("format")
    candidates = [one for entry in entries if (one := _candidate(entry, setup))]
    detecting = [one for one in candidates if one.asked("detects", columns)]
    kind = preference_in(columns) if "input_ids" not in columns else None
    kind = kind or unreadable_in(columns)
    detecting.sort(key=lambda one: not one.entry.is_own)
    if detecting and kind is None:
        if len(detecting) > 1:
            names = ", ".join(f"{one.entry.name}@{one.entry.distribution}" for one in detecting)
            fix = f"Choose one, for example: format: {_spelled(detecting[0].entry, catalog)}"
            if _are_of_several_shapes(detecting, rows()):
                fix = (
                    "The rows differ in shape: write each shape to a file of its own, and make each file a source, "
                    "data: [{path: one.jsonl}, {path: other.jsonl}]"
                )
            what = f"{len(detecting)} formats recognise the columns {quoted(columns)}: {names}."
            raise ConflictError(what, where=where, fix=fix)
        if missing := _missing_text_field(plan, columns):
            warn(f'{where}: {missing} The rows are read as "{detecting[0].entry.name}".')
        return detecting[0].bound
    kind = kind or sets_in(columns)
    found, why_not = _suggestions(candidates, setup, columns, rows, has_template)
    missing = _missing_text_field(plan, columns)
    raise UnreadColumnsError(
        kind.what
        if kind
        else f"no installed format recognises the columns {quoted(columns)}.{missing and ' '}{missing}",
        where=where,
        fix=" ".join(
            text
            for text in (
                kind.fix if kind else "",
                spelled(found, in_python=in_python) or why_not or ("" if kind else _nothing_fits(candidates)),
                _unusable(entries),
                "" if kind else scores_in(columns),
            )
            if text
        ),
        suggestions=tuple(found),
    )


def _are_of_several_shapes(detecting: Sequence[_Candidate], rows: Sequence[Row]) -> bool:
    """Whether each row has the columns of one of these formats alone, and not all of the same."""
    found = set()
    for held in {tuple(name for name, value in row.items() if value is not None) for row in rows}:
        reading = [one.entry for one in detecting if one.asked("detects", held)]
        if len(reading) != 1:
            return False
        found.add(reading[0])
    return len(found) > 1


class UnreadColumnsError(DataError):
    """No format reads the columns as they are; `suggestions` do, after a line in the recipe."""

    def __init__(self, what: str, *, where: str, fix: str, suggestions: tuple[Suggestion, ...]) -> None:
        super().__init__(what, where=where, fix=fix)
        self.suggestions = suggestions


def _missing_text_field(plan: Plan, columns: tuple[str, ...]) -> str:
    """What to say of a column of texts that the user named and that is not there; empty where it is, or by default."""
    field = plan.settings.get("dataset_text_field")
    if field in (None, "text", *columns):
        return ""
    return f'dataset_text_field "{field}" is not a column.{nearest(str(field), columns)}'


def refuse_images(columns: Sequence[str], where: str) -> None:
    """Refuse images that a text run would leave out without a word."""
    if "input_ids" not in columns and (found := sorted({"image", "images"} & set(columns))):
        raise DataError(
            f'the rows have the column "{found[0]}", and the format would train on text alone.',
            where=where,
            fix="Use a format that reads images (format: auto), or remove the column if they do not matter.",
        )


def reader_for(
    bound: Bound, columns: Sequence[str], where: str, plugins: ActivePlugins, settings: Mapping[str, Any] = _NO_SETTINGS
) -> RowReader:
    """Make the formatter, among the run's plugins; the data sets of a run may differ in format.

    `settings` are those of the run, which may keep some of the rows alone.
    """
    try:
        formatter = plugins.having(bound).one("make_formatter", columns=tuple(columns))
    except DataError as error:
        error.where = error.where or where
        raise
    option = getattr(bound.plugin, "calls_as_text", "")
    line = f"format: {{{bound.entry.name}: {{{option}}}}}" if option else ""
    formatter = with_refusals(formatter, columns, getattr(bound.plugin, "media", ()))
    return filtered(RowReader(f'format "{bound.entry.name}"', formatter, where, line), columns, settings)


def filtered(reader: RowReader, columns: Sequence[str], settings: Mapping[str, Any]) -> RowReader:
    """The reader for the rows that the run's settings keep."""
    kept = kept_rows(settings)
    if not kept:
        return reader
    formatter = with_filter(reader.formatter, kept, columns, reader.where)
    return evolve(reader, formatter=formatter, nothing=f"left out by rows: {{where: {dict(kept)}}}")


@frozen(eq=False)
class _Candidate:
    """A format that may read the rows, and the run's plugins with it in the place of the run's own."""

    bound: Bound
    plugins: ActivePlugins

    @property
    def entry(self) -> PluginEntry:
        return self.bound.entry

    def asked(self, hook: str, columns: tuple[str, ...]) -> Any:
        """What it answers to a hook; None where it has no answer, or fails, which is warned of."""
        try:
            return next(iter(self.plugins.ask(self.bound, hook, columns=columns)), None)
        except Exception as error:  # one broken format must not stop the others
            warn_broken(self.entry, error)
            return None


def _candidate(entry: PluginEntry, setup: Setup) -> _Candidate | None:
    if setup.blocked.blocks(entry) or entry.missing:
        return None
    selection = Selection("format", entry.name, {}, entry.distribution, f"format: {AUTO}", default=True)
    try:
        one = bind(selection, setup.catalog, setup.blocked, setup.plan.settings)
        return _Candidate(one, setup.plugins.having(one))  # raises if a hook does not fit
    except SFTCoreError as error:
        warn_broken(entry, error)
        return None


def _spelled(entry: PluginEntry, catalog: Catalog) -> str:
    """How a recipe names this plugin: with its distribution if another distribution uses the same name."""
    shared = sum(other.name == entry.name for other in catalog.of_kind(entry.kind)) > 1
    return f"{entry.name}@{entry.distribution}" if shared else entry.name


def _unusable(entries: Sequence[PluginEntry]) -> str:
    """Names the formats that could not be tried because a library is missing, and how to install it."""
    missing = [f'{one.name} (pip install "{one.distribution}[{one.name}]")' for one in entries if one.missing]
    return f"(Not tried, because a library is missing: {', '.join(missing)}.)" if missing else ""


def _suggestions(
    candidates: Sequence[_Candidate],
    setup: Setup,
    columns: tuple[str, ...],
    rows: Callable[[], Sequence[Row]],
    has_template: bool | None,
) -> tuple[list[Suggestion], str]:
    offers = [(one.bound, one.asked("suggest", columns)) for one in candidates]
    offers = [(one, options) for one, options in offers if options and isinstance(options, Mapping)]

    def bound_with(one: Bound, options: Mapping[str, Any]) -> Bound:
        selection = evolve(one.selection, options=dict(options), path="suggested", default=False)
        return bind(selection, setup.catalog, setup.blocked)

    def read(bound: Bound, row: Row) -> list[Example]:
        return reader_for(bound, columns, "", setup.plugins).read(row, 0)

    return suggested(offers, read, bound_with, rows() if offers else (), has_template)


def _nothing_fits(candidates: Sequence[_Candidate]) -> str:
    return (
        f"Formats: {', '.join(one.entry.name for one in candidates)}. "
        "Name one and map its columns, or give a formatting_func."
    )
