"""`sftcore replay`: a run again, and whether it gives the same weights."""

from __future__ import annotations

import os
import sys

import click

from sftcore.cli.quiet import no_bars


@click.command("replay")
@click.argument("manifest", metavar="MANIFEST")
@click.argument("overrides", nargs=-1, metavar="[model=…] [data=…] [trust_remote_code=true]")
@click.option("--output", metavar="FOLDER", help="A fresh folder. Default: beside the run's, its name with -replay.")
@click.option("--dry-run", is_flag=True, help="Only say what differs from the run's environment; exit code 1 if any.")
def command(manifest: str, overrides: tuple[str, ...], output: str | None, dry_run: bool) -> None:
    """Do a run again from its manifest, and compare weights and logged losses bit by bit.

    MANIFEST is a manifest.json or the folder it lies in. What differs from the environment of the run is said before
    anything is trained. That a model is trusted (trust_remote_code, allow_pickle) is not taken over.
    The exit code is 0 only where weights and losses are equal.
    """
    from sftcore.core.visible import message
    from sftcore.tools.replay import checked_again, differences, fresh_folder, read_manifest, replay

    no_bars()
    leads = os.environ.get("RANK", "0") == "0"

    def say(line: str) -> None:
        if leads:
            click.echo(message(line))

    recorded = read_manifest(manifest)
    checked = checked_again(recorded, output or fresh_folder(recorded), overrides)
    read = [checked.recipe.model.name, checked.train.label, *([checked.eval.label] if checked.eval else [])]
    say(f"reads: {', '.join(map(str, read))}")
    found = list(differences(recorded, checked))
    for line in found:
        say(f"differs: {line}")
    say(f"{len(found)} differences from the run's environment" if found else "the environment is that of the run")
    if dry_run:
        sys.exit(1 if found else 0)

    from rich.console import Console

    verdict = replay(recorded, checked, Console(quiet=not leads), lambda line: say(f"differs: {line}"))
    if not leads:
        return
    say(verdict.weights)
    say(verdict.curve)
    say("the replay is the run" if verdict.equal else "the replay is not the run")
    sys.exit(0 if verdict.equal else 1)
