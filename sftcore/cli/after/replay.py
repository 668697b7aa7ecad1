"""`sftcore replay`: repeat a run, and check that it gives the same weights."""

from __future__ import annotations

import os
import sys

import click

from sftcore.cli.quiet import no_bars


@click.command("replay")
@click.argument("manifest", metavar="MANIFEST")
@click.argument("overrides", nargs=-1, metavar="[model=…] [data=…] [trust_remote_code=true]")
@click.option(
    "--output", metavar="FOLDER", help="A new or empty folder. Default: RUN-replay, next to the run's folder."
)
@click.option(
    "--dry-run", is_flag=True, help="Only list how the environment differs; the exit code is 1 if anything does."
)
def command(manifest: str, overrides: tuple[str, ...], output: str | None, dry_run: bool) -> None:
    """Repeat a run from its manifest, and compare the weights and the logged losses bit by bit.

    MANIFEST is a manifest.json or the folder that contains it. Before training starts, every difference from the
    environment of the original run is listed. The settings that let a model run code (trust_remote_code, allow_pickle)
    are not taken from the manifest. The exit code is 0 only if weights and losses are identical.
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
    read = [checked.recipe.model.name, checked.train.label, *(one.label for one in checked.eval.values())]
    say(f"reads: {', '.join(map(str, read))}")
    found = list(differences(recorded, checked))
    for line in found:
        say(f"differs: {line}")
    count = f"{len(found)} difference{'' if len(found) == 1 else 's'}"
    say(f"{count} from the run's environment" if found else "the environment is the same as that of the run")
    if dry_run:
        sys.exit(1 if found else 0)

    from rich.console import Console

    verdict = replay(recorded, checked, Console(quiet=not leads), lambda line: say(f"differs: {line}"))
    if not leads:
        return
    say(verdict.weights)
    say(verdict.curve)
    say("the replay reproduced the run" if verdict.equal else "the replay did not reproduce the run")
    sys.exit(0 if verdict.equal else 1)
