"""`sftcore train`: train from a recipe file, from settings on the command line, or both."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sftcore.cli.quiet import no_bars
from sftcore.cli.recipe_arguments import recipe_from, takes_recipe
from sftcore.core.visible import visible
from sftcore.train.guard.signals import exits_cleanly


@click.command("train")
@takes_recipe
@click.option(
    "--nproc", type=click.IntRange(min=1), default=1, metavar="N", help="Number of processes to start on this machine."
)
@click.option("--dry-run", is_flag=True, help="Show the plan of the run, and train and write nothing.")
@click.option("--push-dry-run", is_flag=True, help="Train, upload nothing, and list what a push would upload.")
@exits_cleanly()
def command(words: tuple[str, ...], block: tuple[str, ...], nproc: int, dry_run: bool, push_dry_run: bool) -> None:
    """Train a model from a recipe.

    RECIPE is a YAML file. KEY=VALUE pairs override its settings or replace the file altogether; dotted keys reach
    nested settings, as in adapter.lora.r=8. Mistakes in the recipe are reported before anything heavy is loaded. With
    --nproc, accelerate's launcher starts several processes.
    """
    from sftcore.train import run

    no_bars()
    is_first = os.environ.get("RANK", "0") == "0"
    if not is_first:
        warnings.simplefilter("ignore")  # the first process shows the same warnings
    checked = run.check_recipe(recipe_from(words, block))
    run.refuse_folder(checked.recipe)
    if nproc > 1:
        from sftcore.train.processes.launch import launch

        flags = [name for name, given in (("--dry-run", dry_run), ("--push-dry-run", push_dry_run)) if given]
        launch(nproc, [*words, *(f"--block={one}" for one in block), *flags], checked.recipe.training)

    from rich.console import Console

    console = Console(quiet=not is_first)
    if dry_run:
        run.dry_run(checked, console)
        if is_first and (push_dry_run or checked.recipe.training.get("push_to_hub")):
            _say_repository(run.output_dir(checked.recipe), checked.recipe.training)
        return
    outcome = run.run_recipe(checked, console, changed={"push_to_hub": False} if push_dry_run else {})
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
