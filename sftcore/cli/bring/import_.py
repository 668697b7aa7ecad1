"""`sftcore import`: turn another tool's configuration into a recipe."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from sftcore.core.errors import RecipeError, SFTCoreError
from sftcore.core.visible import visible


@click.command("import")
@click.argument("tool", metavar="TOOL")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="RECIPE", help="Write the recipe to this file."
)
@click.option("--without-gpu", is_flag=True, help="Leave out what needs a GPU, and name it.")
@click.option("--account", is_flag=True, help="Show what became of every line instead of the recipe.")
def command(tool: str, file: Path, output: Path | None, without_gpu: bool, account: bool) -> None:
    """Turn the configuration of another tool into a recipe.

    TOOL is trl, axolotl, llamafactory, unsloth, swift or torchtune. FILE is its YAML or JSON, a shell script with its
    options, or a Python script. Nothing of it is run. Defaults that differ are written out, and what has no equivalent
    is named in comments. Secrets are not carried over.
    """
    from sftcore.importers.bring import PEERS, bring
    from sftcore.importers.detect import detect

    if (other := detect(file)) not in ("", tool) and {tool, other} != {"trl", "unsloth"} and tool in PEERS:
        said = f"{file.name} looks like a configuration of {PEERS[other].title}: sftcore import {other} {file}"
        click.echo(visible(f"warning: {said}"), err=True)
    brought = bring(tool, file, without_gpu=without_gpu)
    count = Counter(one.outcome for one in brought.account)
    if account:
        for one in brought.account:
            words = f": {one.words}" if one.words else ""
            click.echo(visible(f"{one.place}\t{one.outcome}\t{one.shown}{words}"))
    elif output is None:
        click.echo(visible(brought.text), nl=False)
    else:
        _write(output, brought.text)
    said = f"{count['used']} settings used, {count['equivalent']} hold anyway, {count['named']} not carried over"
    click.echo(said, err=True)
    for left in brought.left_of_gpu:
        click.echo(visible(f"left out, because it needs a GPU: {left}"), err=True)
    for problem in _problems(brought.values):
        click.echo(visible(f"before it trains: {problem}"), err=True)
    if output is not None and not account:
        click.echo(visible(f"written: {output}"), err=True)
        click.echo(visible(f"next:    sftcore train {output} --dry-run"), err=True)


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"{path} exists already.", fix="Name another file with --output.") from None
    except OSError as error:
        raise RecipeError(f"the recipe cannot be written: {error}.", where=str(path)) from None


def _problems(values: dict[str, object]) -> list[str]:
    """What stands in the way of the recipe here, such as a plugin's library that is not installed."""
    from sftcore.config.recipe import parse_recipe
    from sftcore.core.errors import problems_of

    try:
        parse_recipe(values)
    except SFTCoreError as error:
        return [" ".join(str(one).split()) for one in problems_of([error])]
    return []
