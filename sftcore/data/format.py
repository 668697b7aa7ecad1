"""Chooses the format that reads a data set, and wraps its formatter so that errors name the row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from sftcore.config.plugins.blocked import Blocklist
from sftcore.config.plugins.bound import bind
from sftcore.core.discovery import Catalog, PluginEntry
from sftcore.core.errors import ConflictError, DataError, FaultyPluginError, RowError, SFTCoreError, nearest, quoted
from sftcore.core.registry import ActivePlugins, Bound
from sftcore.core.types import AUTO, Example, Formatter, Plan, Row, Selection
from sftcore.util.warned import warn, warn_broken


@frozen
class RowReader:
    """A format bound to the columns of one data set, which `where` names in errors.

    `calls_as_text` is the line of a recipe by which the format keeps calls of tools as text, "" if it cannot.
    """

    label: str
    formatter: Formatter
    where: str
    calls_as_text: str = ""

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
                what, fix = f"{self.label} failed: {type(error).__name__}: {error}.", ""
            raise RowError(what, fix=fix).at(self.where, number) from cause
        return [found] if isinstance(found, Example) else list(found)


def choose_format(
    plan: Plan, plugins: ActivePlugins, catalog: Catalog, blocked: Blocklist, columns: Sequence[str], where: str
) -> Bound:
    """The format of this data set: the one selected, or under `format: auto` the one that detects its columns.

    Raises:
        DataError: no format detects the columns; the error shows formats that could read them after a mapping.
        ConflictError: several formats detect them.
    """
    columns = tuple(columns)
    named = [one for one in plugins.bound if one.selection.kind == "format"]
    if named:
        if named[0].implements("detects") and not _asked(named[0], plugins, "detects", columns):
            refuse_images(columns, where)
        return named[0]
    entries = catalog.of_kind("format")
    candidates = [one for entry in entries if (one := _candidate(entry, plan, plugins, catalog, blocked))]
    detecting = [one for one in candidates if _asked(one, plugins, "detects", columns)]
    if len(detecting) > 1:
        raise ConflictError(
            f"{len(detecting)} formats recognise the columns {quoted(columns)}: "
            f"{', '.join(f'{one.entry.name}@{one.entry.distribution}' for one in detecting)}.",
            where=where,
            fix=f"Choose one, for example: format: {_spelled(detecting[0].entry, catalog)}",
        )
    missing = _missing_text_field(plan, columns)
    if detecting:
        if missing:
            warn(f'{where}: {missing} The rows are read as "{detecting[0].entry.name}".')
        return detecting[0]
    raise DataError(
        f"no installed format recognises the columns {quoted(columns)}.{missing and ' '}{missing}",
        where=where,
        fix=_suggestions(candidates, plugins, columns) + _unusable(entries),
    )


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


def reader_for(bound: Bound, columns: Sequence[str], where: str, plugins: ActivePlugins) -> RowReader:
    """Make the formatter, among the run's plugins; the data sets of a run may differ in format."""
    try:
        formatter = plugins.having(bound).one("make_formatter", columns=tuple(columns))
    except DataError as error:
        error.where = error.where or where
        raise
    option = getattr(bound.plugin, "calls_as_text", "")
    line = f"format: {{{bound.entry.name}: {{{option}}}}}" if option else ""
    return RowReader(f'format "{bound.entry.name}"', formatter, where, line)


def _candidate(
    entry: PluginEntry, plan: Plan, plugins: ActivePlugins, catalog: Catalog, blocked: Blocklist
) -> Bound | None:
    if blocked.blocks(entry) or entry.missing:
        return None
    selection = Selection("format", entry.name, {}, entry.distribution, f"format: {AUTO}", default=True)
    try:
        one = bind(selection, catalog, blocked, plan.settings)
        plugins.having(one)  # raises if a hook does not fit
    except SFTCoreError as error:
        warn_broken(entry, error)
        return None
    return one


def _spelled(entry: PluginEntry, catalog: Catalog) -> str:
    """How a recipe names this plugin: with its distribution if another distribution uses the same name."""
    shared = sum(other.name == entry.name for other in catalog.of_kind(entry.kind)) > 1
    return f"{entry.name}@{entry.distribution}" if shared else entry.name


def _asked(one: Bound, plugins: ActivePlugins, hook: str, columns: tuple[str, ...]) -> Any:
    try:
        return next(iter(plugins.having(one).ask(one, hook, columns=columns)), None)
    except Exception as error:  # one broken format must not stop the others
        warn_broken(one.entry, error)
        return None


def _unusable(entries: Sequence[PluginEntry]) -> str:
    """Names the formats that could not be tried because a library is missing, and how to install it."""
    missing = [f'{one.name} (pip install "{one.distribution}[{one.name}]")' for one in entries if one.missing]
    return f" Not tried, because a library is missing: {', '.join(missing)}." if missing else ""


def _suggestions(candidates: Sequence[Bound], plugins: ActivePlugins, columns: tuple[str, ...]) -> str:
    lines = []
    for one in candidates:
        options = _asked(one, plugins, "suggest", columns)
        if isinstance(options, Mapping):
            inner = ", ".join(f"{key}: {value}" for key, value in options.items())
            lines.append(f"format: {{{one.entry.name}: {{{inner}}}}}")
    if lines:
        return f"Map them: {' or '.join(lines)}"
    return (
        f"Formats: {', '.join(one.entry.name for one in candidates)}. "
        "Name one and map its columns, or give a formatting_func."
    )
