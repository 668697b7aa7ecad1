"""`sftcore train`: train from a recipe file, from settings on the command line, or both."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from sftcore.cli.quiet import no_bars
from sftcore.cli.recipe_arguments import recipe_from, takes_recipe
from sftcore.core.visible import visible
from sftcore.train.guard.signals import exits_cleanly

if TYPE_CHECKING:
    from sftcore.train.checked import Checked


@click.command("train")
@takes_recipe
@click.option(
    "--nproc", type=click.IntRange(min=1), default=1, metavar="N", help="Number of processes to start on this machine."
)
@click.option("--dry-run", is_flag=True, help="Show the plan of the run, and train and write nothing.")
@click.option("--push-dry-run", is_flag=True, help="Train, upload nothing, and list what a push would upload.")
@click.option("--json-logs", is_flag=True, help="Print each log as a line of JSON, and nothing else, to stdout.")
@exits_cleanly()
def command(
    words: tuple[str, ...], block: tuple[str, ...], nproc: int, dry_run: bool, push_dry_run: bool, json_logs: bool
) -> None:
    """Train a model from a recipe.

    RECIPE is a YAML file. KEY=VALUE pairs override its settings or replace the file altogether; dotted keys reach
    nested settings, as in adapter.lora.r=8. Mistakes in the recipe are reported before anything heavy is loaded. With
    --nproc, accelerate's launcher starts several processes.
    """
    from sftcore.display.streams import lasting_streams, stdout_alone

    draws = no_bars()
    if os.environ.get("RANK", "0") != "0":
        warnings.simplefilter("ignore")  # the first process shows the same warnings
    with lasting_streams(), stdout_alone() if json_logs else nullcontext() as stdout:
        checked = _checked(words, block)
        if nproc == 1:
            _run(checked, dry_run=dry_run, push_dry_run=push_dry_run, draws=draws, stdout=stdout)
            return
    from sftcore.train.processes.launch import launch

    given = {"--dry-run": dry_run, "--push-dry-run": push_dry_run, "--json-logs": json_logs}
    flags = [name for name, is_given in given.items() if is_given]
    launch(nproc, [*words, *(f"--block={one}" for one in block), *flags], checked.recipe.training)


def _checked(words: tuple[str, ...], block: tuple[str, ...]) -> Checked:
    from sftcore.train import run

    checked = run.check_recipe(recipe_from(words, block))
    run.refuse_folder(checked.recipe)
    return checked


def _run(checked: Checked, *, dry_run: bool, push_dry_run: bool, draws: bool, stdout: TextIO | None) -> None:
    """Train on this process; `stdout` takes lines of JSON, and what else is said goes to stderr then."""
    from rich.console import Console

    from sftcore.display.lines import JsonLines
    from sftcore.train import run

    is_first = os.environ.get("RANK", "0") == "0"
    console = Console(quiet=not is_first)
    if dry_run:
        run.dry_run(checked, console)
        if is_first and (push_dry_run or checked.recipe.training.get("push_to_hub")):
            _say_repository(run.output_dir(checked.recipe), checked.recipe.training)
        return
    view = JsonLines(stdout) if stdout and is_first else run.view_of(checked.recipe, console, draws=draws)
    changed = {"push_to_hub": False} if push_dry_run else {}
    outcome = run.run_recipe(checked, console, changed=changed, view=view)
    if is_first:
        click.echo(visible(outcome.sentence))
    if is_first and push_dry_run:
        _list_push(outcome.folder, checked.recipe.training)


def _say_repository(folder: Path, settings: Mapping[str, Any]) -> None:
    """Where a run would upload its folder, which does not exist before the run."""
    kind = "private" if settings.get("hub_private_repo") else "public"
    repository = settings.get("hub_model_id") or folder.name
    click.echo(
        visible(f"push       to {repository}, {kind}; --push-dry-run alone trains and lists the files"), err=True
    )


def _list_push(folder: Path, settings: Mapping[str, Any]) -> None:
    """What transformers would have uploaded of the run's folder: all but checkpoints, unless those are asked for."""
    from sftcore.tools.push import would_push

    repository = settings.get("hub_model_id") or folder.name
    strategy = settings.get("hub_strategy") or "every_save"
    leave_out = ["_*", *([] if strategy == "all_checkpoints" else ["checkpoint-*"])]
    private = bool(settings.get("hub_private_repo"))
    for line in would_push(folder, repository, private=private, leave_out=leave_out):
        click.echo(visible(line))
    if strategy == "checkpoint":
        click.echo("  and the newest checkpoint as last-checkpoint/, at every save")
