"""`sftcore parity`: whether a saved folder will be served with what it was trained with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from sftcore.core.visible import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftcore.chat.parity import ParityCheck


@click.command("parity")
@click.argument("folder")
@click.option(
    "--against", metavar="FOLDER|MODEL", help="Compare with this one, not with the run that saved the folder."
)
def command(folder: str, against: str | None) -> None:
    """ParityCheck a saved folder as plain transformers reads it: template, token ids, stop tokens, padding, vocabulary.

    FOLDER is what a run saved, an adapter or a whole model, or any model by folder or hub id; no weights are read.
    It is compared with the record of its run in manifest.json. The exit code is 1 where something differs.
    """
    from sftcore.chat.parity import parity
    from sftcore.chat.record import read_served

    served = read_served(folder)
    trained = read_served(against).chat if against else served.record
    checks = parity(served, trained)
    _show(checks)
    differing = [check for check in checks if check.state == "differs"]
    compared = against or ("the run that saved it" if served.record else "nothing but itself: no run has left a record")
    click.echo(f"{len(differing)} of {len(checks)} checks differ; compared with {visible(compared)}")
    if differing:
        sys.exit(1)


def _show(checks: Sequence[ParityCheck]) -> None:
    width = max(len(check.name) for check in checks)
    colours = {"ok": "green", "differs": "red", "warning": "yellow", "not checked": None}
    for check in checks:
        state = click.style(f"{check.state:<11}", colours[check.state])
        click.echo(f"{check.name:<{width}}  {state}  {visible(check.detail)}")
        if check.fix and check.state != "ok":
            click.echo(f"{'':<{width}}  {'':<11}  {visible(check.fix)}")
