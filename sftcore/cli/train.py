"""`sftcore train`: train from a recipe file, from settings on the command line, or both."""

from __future__ import annotations

import os
import warnings

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
@exits_cleanly()
def command(words: tuple[str, ...], block: tuple[str, ...], nproc: int, dry_run: bool) -> None:
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
    if not dry_run:
        run.refuse_folder(checked.recipe)
    if nproc > 1:
        from sftcore.train.launch import launch

        options = [*(f"--block={one}" for one in block), *(["--dry-run"] if dry_run else [])]
        launch(nproc, [*words, *options], checked.recipe.training)

    from rich.console import Console

    console = Console(quiet=not is_first)
    if dry_run:
        run.dry_run(checked, console)
        return
    outcome = run.run_recipe(checked, console)
    if is_first:
        click.echo(visible(outcome.sentence))
