"""`sftcore check`: report on a whole data set without training."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sftcore.cli.quiet import no_bars
from sftcore.cli.recipe_arguments import takes_data
from sftcore.core.visible import visible

if TYPE_CHECKING:
    from sftcore.check.findings import Finding, Location
    from sftcore.check.images import Images, Media
    from sftcore.check.row_list import RowList
    from sftcore.check.set_report import SetReport
    from sftcore.config.data.section import SourceSection
    from sftcore.config.recipe import Recipe

SCHEMA = 1
"""Version of the JSON that `--json` prints; docs/how-to/check-your-data.md describes it."""

_BAR = 40
_INDENT = " " * 9
_DETAILED = 3
"""How many rows of a finding are shown in detail."""
_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}


@click.command("check")
@takes_data
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON (docs/how-to/check-your-data.md).")
@click.option(
    "--rows", metavar="FILE", help="Write what becomes of each row to this file (docs/reference/rows-file.md)."
)
def command(recipe: Recipe, as_json: bool, rows: str | None) -> None:
    """Check a whole data set without training on it.

    The report says what a run would keep, cut and refuse, and points out suspicious rows. DATA is a file, a quoted
    pattern, a folder or a hub id; a RECIPE also supplies the model and the settings. Without a model, lengths are
    counted in characters instead of tokens. The exit code is 1 if something would stop or spoil the run.
    """
    from sftcore.check.row_list import RowList

    no_bars(always=True)
    listed = RowList() if rows else None
    # what a plugin prints must not stand in the JSON
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        reports = list(_reports(recipe, listed))
        if listed is not None and rows:
            count = listed.write(Path(rows).expanduser())
            click.echo(visible(f"{count:,} rows are listed in {rows}"), err=True)
    errors, warnings = (sum(report.count(severity) for report in reports) for severity in ("error", "warning"))
    if as_json:
        sets = [report.as_dict() for report in reports]
        click.echo(json.dumps({"schema": SCHEMA, "sets": sets, "errors": errors, "warnings": warnings}, indent=2))
    else:
        for report in reports:
            for line in _lines(report):
                click.echo(line)
        click.echo(f"{_num(errors, 'error')}, {_num(warnings, 'warning')}")
    sys.exit(1 if errors else 0)


# --- Reading --------------------------------------------------------------------------------------------------------
def _reports(recipe: Recipe, listed: RowList | None) -> Iterator[SetReport]:
    """A report of each source: of the training set, and of the evaluation sets that the recipe names."""
    from sftcore.check.inspect import Inspectors
    from sftcore.check.near import NearRows, Seen
    from sftcore.check.report import Reporter
    from sftcore.config.setup import check, set_up
    from sftcore.core.types import KINDS
    from sftcore.data.mixing.mixture import with_format
    from sftcore.tools.preview import PreparationFactory

    named = recipe.model.name is not None
    without = () if named else [kind for kind in KINDS if kind != "format"]
    setup = set_up(
        recipe.chosen, recipe.settings, recipe.model, where=recipe.place, block=recipe.block, without=without
    )
    check(setup, needs_weights=False)
    prepare = PreparationFactory(recipe) if named else None
    training, near, sections = Seen(), NearRows() if recipe.data.eval_sets else None, list(_sections(recipe))
    evaluated = []
    # the rows of the evaluation sets first: those of the training set, which are many more, are compared with them
    for set_name, name, section in sorted(sections, key=lambda one: one[0] == "train"):
        path = section.path if isinstance(section.path, str) else ", ".join(section.path)
        shown = _show_progress if sys.stderr.isatty() else None
        inspectors = Inspectors(with_format(setup, section.format), prepare, name)
        of_evaluation = set_name != "train"
        seen = training if of_evaluation else None
        reporter = Reporter(name, section.labelled(path), inspectors, recipe.model.name, seen, shown, near)
        reporter.listed = listed
        reporter.listed_as = set_name, reporter.source if name == set_name else str(section.name)
        _read(reporter, section)
        if shown is not None:
            click.echo("\r\x1b[K", nl=False, err=True)
        if of_evaluation:
            evaluated.append(reporter)
            continue
        training.add(reporter.seen, f" of {section.name}" if len(recipe.data.sources) > 1 else "")
        yield reporter.report()
    yield from (reporter.report() for reporter in evaluated)


def _sections(recipe: Recipe) -> Iterator[tuple[str, str, SourceSection]]:
    """Every source: the set that it is of, what it is called, by its own name where there are several, and itself."""
    named = {f"eval[{name!r}]" if name else "eval": some for name, some in recipe.data.eval_sets.items()}
    for set_name, sections in {"train": recipe.data.sources, **named}.items():
        for one in sections:
            yield set_name, f"{set_name}[{one.name!r}]" if len(sections) > 1 else set_name, one


def _read(reporter: Any, section: SourceSection) -> None:
    from sftcore.check.findings import Location
    from sftcore.core.errors import DataError
    from sftcore.data.source.files import local_files
    from sftcore.data.source.rows import Raw, Window, raw_rows
    from sftcore.data.source.several import window_in

    try:
        files = local_files(section.path, section.sample_by)
        taken = window_in(section, files) or range(sys.maxsize)
    except DataError as error:
        reporter.findings.add("unreadable", Location(file=error.where), what=error.what, fix=error.fix)
        return
    stop = taken.stop if section.rows is None else min(taken.stop, taken.start + section.rows)
    window, reporter.number = Window(taken.start, stop, section.columns), taken.start
    if files is None:
        from sftcore.data.source.load import Source, load

        label = str(section.path)
        sources: Iterable[tuple[str, Iterator[Raw]]] = [
            (label, map(Raw, load(Source(label, None), section, section.split)))
        ]
    else:
        sources = ((str(path), raw_rows(path, files.builder, files.sample_by)) for path in files.paths)
    for file, raws in sources:
        if not window.closed:
            reporter.read(file, window.of(raws), window.position)


def _show_progress(rows: int) -> None:
    click.echo(f"\r\x1b[K{rows:,} rows", nl=False, err=True)


# --- Showing --------------------------------------------------------------------------------------------------------
def _lines(report: SetReport) -> Iterator[str]:
    yield click.style(visible(f"{report.name}: {report.source}"), bold=True)
    for file in report.files if len(report.files) > 1 else ():
        yield visible(f"  {'file':<14} {file.path}: {_num(file.rows, 'row')}, {file.format or 'no format'}")
    for name, text in _facts(report):
        yield visible(f"  {name:<14} {text}")
    yield ""
    yield from _histogram(report)
    for finding in report.findings:
        yield from _finding(finding, several=len(report.files) > 1)
    if report.findings:
        yield ""


def _facts(report: SetReport) -> Iterator[tuple[str, str]]:
    formats = list(dict.fromkeys(file.format for file in report.files if file.format))
    if formats:
        yield "format", ", ".join(formats) + (" (suggested, see below)" if report.suggested else "")
    if report.model is not None:
        at = f", max_length {report.max_length:,}" if report.max_length is not None else ""
        yield "model", f"{Path(report.model).name}{at}"
    from sftcore.data.ledger import MANY_CUT

    rows = report.rows
    parts = [f"{rows.read:,} read", f"{rows.broken:,} broken", f"{rows.refused:,} refused"]
    if report.tokens is not None:
        parts += [f"{rows.dropped:,} dropped", f"{rows.kept:,} kept", f"{rows.cut:,} of them cut"]
        if rows.cut >= MANY_CUT * rows.kept > 0:
            parts[-1] += f" ({rows.cut / rows.kept:.0%}: raise max_length or split them)"
    yield "rows", ", ".join(parts)
    if (tokens := report.tokens) is not None:
        share = f" ({tokens.supervised / tokens.kept:.1%} of them)" if tokens.kept else ""
        counts = f"{tokens.all:,} in, {tokens.cut:,} cut, {tokens.dropped:,} dropped, {tokens.kept:,} kept"
        yield "tokens", f"{counts}, {tokens.supervised:,} supervised{share}"
    unit = "tokens" if report.tokens is not None else "characters"
    total = sum(getattr(role, unit) for role in report.roles.values())
    if total:
        shares = (f"{name} {getattr(role, unit) / total:.1%}" for name, role in report.roles.items())
        yield f"{unit} of", ", ".join(shares)
    if (images := report.images) is not None:
        text = f"{images.images:,} in {_num(images.rows, 'row')}"
        if images.smallest and images.largest:
            low, high = ("{} x {}".format(*size) for size in (images.smallest, images.largest))
            text += f", {low} to {high} pixels{_tokens_of(images)}"
        yield "images", text
    for media in report.media:
        yield f"{media.kind}s", f"{media.count:,} in {_num(media.rows, 'row')}{_tokens_of(media)}"
    if (packing := report.packing) is not None:
        blocks = f"{packing.blocks:,} blocks of {report.max_length:,} tokens, {packing.fill:.1%} filled"
        yield "packing", f"would make {blocks} ({packing.strategy})"


def _tokens_of(counted: Images | Media) -> str:
    """How many tokens images or media have, where a model says."""
    if not counted.most:
        return ""
    each = f"{counted.fewest:,}" if counted.fewest == counted.most else f"{counted.fewest:,} to {counted.most:,}"
    return f", {each} tokens each, {counted.tokens:,} together"


def _histogram(report: SetReport) -> Iterator[str]:
    lengths = report.lengths
    if lengths is None:
        return
    quantiles = ", ".join(f"{name} {value:,}" for name, value in lengths.quantiles.items())
    yield f"  {lengths.unit} a row: {quantiles}"
    longest = max(one.rows for one in lengths.histogram)
    width = max(len(f"{one.start:,}") for one in lengths.histogram)
    marked = report.max_length if lengths.unit == "tokens" else None
    if marked is not None and marked > lengths.quantiles["max"]:
        yield f"  max_length is {marked:,}: no row is longer"
        marked = None
    for one in lengths.histogram:
        end = f"{one.end - 1:,}" if one.end is not None else "…"
        bar = "█" * round(_BAR * one.rows / longest) or ("▏" if one.rows else "")
        inside = marked is not None and one.start <= marked and (one.end is None or marked < one.end)
        yield f"  {one.start:>{width},} – {end:<{width}} {bar} {one.rows:,}" + (" ← max_length" if inside else "")
    if marked is not None and marked < lengths.histogram[0].start:
        yield f"  max_length is {marked:,}: every row is longer"
    yield ""


def _finding(finding: Finding, *, several: bool) -> Iterator[str]:
    label = click.style(f"{finding.severity:<9}", fg=_COLOURS[finding.severity], bold=True)
    count = "" if all(place.row is None for place in finding.rows) else f" ({_num(finding.count, 'row')})"
    yield label + visible(f"{finding.id}{count}: {finding.what}")
    told = finding.severity != "info" or any(place.detail for place in finding.rows)
    detailed = finding.rows[:_DETAILED] if told else ()
    for place in detailed:
        if text := _place(place, detail="" if place.detail == finding.what else place.detail, several=several):
            yield visible(f"{_INDENT}{text}")
    numbers = [str(place.row) for place in finding.rows[len(detailed) :] if place.row is not None]
    more = f" … and {finding.count - len(finding.rows):,} more" if finding.count > len(finding.rows) else ""
    if numbers or more:
        yield f"{_INDENT}{'and ' if detailed else ''}rows {', '.join(numbers)}{more}"
    if finding.fix:
        yield visible(f"{_INDENT}→ {finding.fix}")


def _place(place: Location, *, detail: str, several: bool) -> str:
    """`row 3 (line 4): detail`, with the file where there are several."""
    if place.row is None:
        where = f"{place.file} line {place.line}" if place.line is not None else place.file if several else ""
    else:
        line = f" (line {place.line})" if place.line is not None else ""
        where = f"{place.file} row {place.row}{line}" if several else f"row {place.row}{line}"
    return ": ".join(filter(None, [where, detail]))


def _num(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
