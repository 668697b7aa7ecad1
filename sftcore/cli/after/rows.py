"""`sftcore rows`: show the rows of a run that hurt."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sftcore.core.visible import visible

if TYPE_CHECKING:
    from sftcore.report.rows.ranked import RankedRow, Ranking

SCHEMA = 1
"""Version of the JSON that `--json` prints; docs/reference/rows-file.md describes it."""
_KINDS = {
    "worst": "by how high their loss stays",
    "late": "by how late their loss falls",
    "jumps": "by how far their loss rises from one epoch to the next",
    "cut": "cut, by how many tokens",
    "dropped": "that were dropped or refused",
    "duplicates": "that are the same as an earlier row",
}
_SHOWN = 300
"""How many characters of a row are shown."""


@click.command("rows")
@click.argument("run", metavar="RUN")
@click.option("--worst", default=50, show_default=True, type=click.IntRange(min=1), help="At most so many rows.")
@click.option("--what", default="worst", show_default=True, type=click.Choice(list(_KINDS)), help="Which rows.")
@click.option("--source", metavar="S", help="Only rows of this source, or of this file.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object (docs/reference/rows-file.md).")
def command(run: str, worst: int, what: Any, source: str | None, as_json: bool) -> None:
    """Show the rows of a run that hurt, each with its file, its number and its text.

    RUN is the folder of a run, or a rows.parquet, which `sftcore check --rows` also writes. Rows whose loss stays high
    are often mislabelled or in another language; `late` and `jumps` need two epochs. `cut`, `dropped` and `duplicates`
    are what became of rows.
    """
    from sftcore.report.rows.ranked import ranked
    from sftcore.report.rows.texts import texts_of

    path = Path(run).expanduser()
    with contextlib.redirect_stdout(sys.stderr):
        found = ranked(path, what, worst=worst, source=source)
        texts, notes = texts_of(found.rows, path if path.is_dir() else path.parent)
    if as_json:
        rows = [{**row.as_dict(), "text": text} for row, text in zip(found.rows, texts, strict=True)]
        facts = {"what": what, "loss": found.loss, "epochs": list(found.epochs), "count": found.count}
        click.echo(json.dumps({"schema": SCHEMA, **facts, "notes": notes, "rows": rows}, indent=2, allow_nan=False))
        return
    for line in _lines(found, texts):
        click.echo(visible(line))
    for note in notes:
        click.echo(visible(f"note: {note}"), err=True)


def _lines(found: Ranking, texts: list[str | None]) -> Iterator[str]:
    of = f", loss {found.loss}" if found.loss and found.what in ("worst", "late", "jumps") else ""
    shown = f"the first {len(found.rows):,} of {found.count:,}" if found.count > len(found.rows) else f"{found.count:,}"
    yield f"{shown} rows {_KINDS[found.what]}{of} ({found.listed:,} are listed)"
    for number, (row, text) in enumerate(zip(found.rows, texts, strict=True), 1):
        yield f"{number:>4}. {row.place}: {'; '.join(_facts(row, found.what))}"
        if text is not None:
            yield f"      {text[:_SHOWN]}{'…' if len(text) > _SHOWN else ''}"


def _facts(row: RankedRow, what: str) -> Iterator[str]:
    if what == "dropped":
        yield f"{row.outcome}{f', {row.reason}' if row.reason else ''}"
    if what == "cut":
        yield f"{row.tokens_cut:,} of {row.tokens:,} tokens are cut off"
    if what == "duplicates" and row.same_as is not None:
        source, first = row.same_as
        yield f"the same as {'' if source == row.source else f'{source} '}row {first}"
    if row.loss and row.mean is not None:
        spread = f", spread {row.spread:.2f}" if row.spread is not None and len(row.loss) > 1 else ""
        every = " ".join(f"{one:.2f}" for one in row.loss)
        yield f"loss {every} (mean {row.mean:.2f}{spread})" if len(row.loss) > 1 else f"loss {every}"
    if row.supervised and what != "cut":
        yield f"{row.supervised:,} supervised token{'' if row.supervised == 1 else 's'}"
