"""`sftcore selftest`: compare each feature of a run with plain transformers, on the run's own model and rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sftcore.cli.quiet import no_bars, table_width
from sftcore.cli.recipe_arguments import recipe_from, takes_recipe
from sftcore.util.disk import writing

if TYPE_CHECKING:
    from rich.table import Table

    from sftcore.selftest.equivalence import Line, Report

_COLOURS = {"same": "green", "FAILED": "bold red", "not applicable": "dim"}


@click.command("selftest")
@takes_recipe
@click.option(
    "--rows",
    default=4,
    show_default=True,
    type=click.IntRange(min=2),
    help="Number of rows to compare on; each is shortened.",
)
@click.option(
    "--json",
    "file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the report to this file.",
)
@click.option("--no-processes", is_flag=True, help="Skip the test with two processes, each of which loads the model.")
def command(words: tuple[str, ...], block: tuple[str, ...], rows: int, file: Path | None, no_processes: bool) -> None:
    """Verify, feature by feature, that a run computes the same loss and gradients as plain transformers.

    It takes the same arguments as `train`. Nothing is trained, and nothing is written except FILE. The exit code is 1
    if a comparison fails.
    """
    if file is not None and not file.parent.is_dir():
        raise click.UsageError(f'The folder "{file.parent}" for the report does not exist.')
    from sftcore.train.run import check_recipe

    checked = check_recipe(recipe_from(words, block))
    no_bars(always=True)

    from rich.console import Console

    from sftcore.selftest.selftest import selftest

    report = selftest(checked, num_rows=rows, processes=not no_processes)
    if file is not None:
        with writing("the report", file):
            file.write_text(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = f"{report.rows} rows, {report.tokens} tokens, {report.supervised:g} supervised"
    click.echo(f"{Path(report.model).name}: {counts}")
    click.echo(f"compared with plain transformers: {report.reference}; loss {report.loss:.4f}")
    click.echo(f"allowed relative difference ({report.dtype}): {report.tolerance:g} in loss and gradients")
    Console(width=table_width()).print(_table(report))
    for note in report.notes:
        click.echo(f"note: {note}")
    compared = sum(line.verdict != "not applicable" for line in report.lines)
    if report.failed:
        click.echo(f"{report.failed} of {compared} comparisons failed.")
    else:
        click.echo(f"All {compared} comparisons give the loss and the gradients of plain transformers.")
    sys.exit(1 if report.failed else 0)


def _table(report: Report) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("what", "loss", "gradients", "worst parameter", "verdict"):
        table.add_column(name, justify="right" if name in ("loss", "gradients") else "left", overflow="fold")
    for line in report.lines:
        table.add_row(*_cells(line))
    return table


def _cells(line: Line) -> list[str]:
    from rich.markup import escape

    colour = _COLOURS[line.verdict]
    verdict = f"[{colour}]{line.verdict}[/]" + (f": {escape(line.why)}" if line.why else "")
    gap = line.gap
    if gap is None:
        return [escape(line.what), "", "", "", verdict]
    worst = escape(_short(gap.worst_parameter)) if gap.worst else ""
    if line.verdict == "FAILED":
        worst = f"{gap.worst:.1e} {worst}".strip()
    return [escape(line.what), f"{gap.loss:.1e}", f"{gap.gradient:.1e}", worst, verdict]


def _short(name: str) -> str:
    """A parameter's name without the parts common to all of them: `layers.1.mlp.up_proj.lora_B`."""
    short = name.removesuffix(".weight").removesuffix(".default")
    return short.removeprefix("base_model.model.").removeprefix("model.")
