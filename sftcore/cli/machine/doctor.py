"""`sftcore doctor`: what is wrong with this machine, and with what a recipe's run needs."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING

import click

from sftcore.cli.quiet import quiet
from sftcore.cli.recipe_arguments import recipe_from, takes_recipe
from sftcore.core.visible import visible

if TYPE_CHECKING:
    from sftcore.tools.doctor.line import Line

SCHEMA = 1
_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command("doctor")
@takes_recipe
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def command(words: tuple[str, ...], block: tuple[str, ...], as_json: bool) -> None:
    """Look for what is wrong: versions, devices, plugins, the environment, disk and caches.

    With a RECIPE also what its run needs: plugins, precision, the hub, memory and space. The exit code is 1 if
    something is wrong, and each such line says how to mend it. Installed plugins are imported.
    """
    from sftcore.core.errors import SFTCoreError
    from sftcore.tools.doctor.examine import examine
    from sftcore.tools.doctor.line import Line

    quiet()
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        try:
            recipe = recipe_from(words, block) if words or block else None
        except SFTCoreError as error:
            lines = [Line("recipe", "error", f"{error.where}: {error.what}", error.fix), *examine()]
        else:
            lines = examine(recipe)
    if as_json:
        wrong = any(one.status == "error" for one in lines)
        click.echo(json.dumps({"schema": SCHEMA, "ok": not wrong, "lines": [one.as_dict() for one in lines]}, indent=2))
    else:
        for line in lines:
            _show(line)
    if any(one.status == "error" for one in lines):
        sys.exit(1)


def _show(line: Line) -> None:
    click.echo(f"{click.style(f'{line.status:<8}', fg=_COLOURS[line.status])} {line.area:<12} {visible(line.what)}")
    if line.fix:
        click.echo(f"{'':<21} {visible(line.fix)}")
