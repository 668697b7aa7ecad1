"""`sftcore train`: a recipe, overrides, or both."""

from __future__ import annotations

import os

import click

from sftcore.cli.recipe_arguments import recipe_from, takes_recipe


@click.command("train")
@takes_recipe
def command(words: tuple[str, ...], block: tuple[str, ...]) -> None:
    """Train what a recipe says.

    RECIPE is a YAML file; KEY=VALUE pairs override it or stand alone (dotted keys reach inside: adapter.lora.r=8).
    Everything that can be found wrong is found before anything heavy is loaded.
    """
    from sftcore.run.train import check_recipe, run_recipe

    checked = check_recipe(recipe_from(words, block))

    from rich.console import Console

    console = Console(quiet=os.environ.get("RANK", "0") != "0")
    console.print(run_recipe(checked, console).sentence, highlight=False, soft_wrap=True)
