"""`sftcore plugin test`: run the tests that every plugin of a kind has to pass."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sftcore.core.errors import DataError, UnavailablePluginError
from sftcore.core.visible import visible

if TYPE_CHECKING:
    from sftcore.testing.report import Result

_WORDS = {"passed": ("passed", "green"), "failed": ("FAILED", "red"), "skipped": ("not tried", "yellow")}


@click.group("plugin")
def command() -> None:
    """Test plugins as their author."""


@command.command("test")
@click.argument("target", metavar="PATH|NAME")
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Rows to test a format with: JSON, one a line.",
)
def test(target: str, data: Path | None) -> None:
    """Run the tests that every plugin of its kind has to pass, and print what came of each.

    PATH is the folder of a distribution, which need not be installed; its own tests are run too. NAME is that of an
    installed distribution or of a plugin (nll, loss:nll, nll@sftcore). The exit code is 1 if a test fails.
    """
    if importlib.util.find_spec("pytest") is None:
        raise UnavailablePluginError("plugins are tested with pytest.", fix='Install: pip install "sftcore[testing]"')
    from sftcore.testing import targets
    from sftcore.testing.report import counts, report_on

    rows = None if data is None else _rows(data)
    with targets.found(target) as found:
        results = report_on(found, rows)
        for entry in found.entries:
            click.echo(f"{entry.kind} {entry.name} ({entry.distribution} {entry.version})")
    _show(results)
    number = counts(results)
    said = [f"{number['passed']} passed", f"{number['failed']} failed", f"{number['skipped']} not tried"]
    click.echo(", ".join(text for text in said if not text.startswith("0 ")) + "." if results else "No test was run.")
    sys.exit(1 if number["failed"] or not number["passed"] else 0)


def _rows(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()[:100]):
        if line.strip():
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"this line is not JSON: {error}.", where=f"{file} row {number}") from error
    return found


def _show(results: Sequence[Result]) -> None:
    group = None
    for one in results:
        if one.group != group:
            group = one.group
            click.echo(visible(group))
        word, colour = _WORDS[one.outcome]
        click.echo(f"  {click.style(word.ljust(9), colour)}  {visible(one.test)}")
        for line in one.said.splitlines():
            click.echo(f"             {visible(line)}")
