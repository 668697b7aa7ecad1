"""`sftcore parity`: check that a saved model will be served with the template and tokens it was trained with."""

from __future__ import annotations

import sys

import click

from sftcore.core.visible import visible

_COLOURS = {"ok": "green", "differs": "red", "warning": "yellow", "not checked": None}


@click.command("parity")
@click.argument("folder")
@click.option(
    "--against", metavar="FOLDER|MODEL", help="Compare with this model instead of the run that saved the folder."
)
def command(folder: str, against: str | None) -> None:
    """Check how plain transformers will serve FOLDER: template, token ids, stop tokens, padding and vocabulary.

    FOLDER is an adapter or a whole model that a run saved, or any other model by folder or hub id. It is compared with
    what its run recorded in manifest.json. No weights are read. The exit code is 1 if something differs.
    """
    from sftcore.chat.served.parity import parity
    from sftcore.chat.served.record import read_served

    served = read_served(folder)
    trained = read_served(against).chat if against else served.record
    checks = parity(served, trained)
    width = max(len(check.name) for check in checks)
    for check in checks:
        state = click.style(f"{check.state:<11}", _COLOURS[check.state])
        click.echo(f"{check.name:<{width}}  {state}  {visible(check.detail)}")
        if check.fix and check.state != "ok":
            click.echo(f"{'':<{width}}  {'':<11}  {visible(check.fix)}")
    differing = [check for check in checks if check.state == "differs"]
    compared = against or ("the run that saved it" if served.record else "itself only, since no run left a record")
    click.echo(f"{len(differing)} of {len(checks)} checks differ; compared with {visible(compared)}")
    if differing:
        sys.exit(1)
