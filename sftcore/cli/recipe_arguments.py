"""The arguments that verbs taking a recipe share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sftcore.recipe import Recipe, load_recipe

F = TypeVar("F", bound=Callable[..., Any])


def takes_recipe(function: F) -> F:
    """Add `[RECIPE] [KEY=VALUE]... --block`, passed on as `words` and `block`."""
    block = click.option("--block", multiple=True, metavar="KIND:NAME", help="Never use this plugin.")
    return click.argument("words", nargs=-1, metavar="[RECIPE] [KEY=VALUE]...")(block(function))


def recipe_from(words: tuple[str, ...], block: tuple[str, ...]) -> Recipe:
    """The recipe that the words mean: an optional file first, then overrides."""
    if not words:
        raise click.UsageError("Give a recipe file, key=value pairs, or both: sftcore train model=… data=train.jsonl")
    first, rest = words[0], words[1:]
    is_file = "=" not in first or Path(first).is_file()
    return load_recipe(first, rest, block=block) if is_file else load_recipe(None, words, block=block)
