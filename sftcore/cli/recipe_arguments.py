"""The arguments shared by several verbs: a recipe, data instead of one, or a run's folder."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click

from sftcore.cli.quiet import quiet
from sftcore.config.recipe import Recipe, load_recipe
from sftcore.core.types import ModelRequest

if TYPE_CHECKING:
    from sftcore.tools.saved import SavedRun

F = TypeVar("F", bound=Callable[..., Any])

_BLOCK = click.option("--block", multiple=True, metavar="KIND:NAME", help="Never use this plugin; may be repeated.")

takes_dtype = click.option(
    "--dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Data type of the weights; auto keeps the one that the model was saved in.",
)


def takes_run(function: Callable[..., None]) -> Callable[..., None]:
    """Add `RUN --adapter --base --trust-remote-code`; the function gets `run`, and `opened`, which reads its files."""

    @functools.wraps(function)
    def command(run: str, adapter: str | None, base: str | None, trust_remote_code: bool, **others: Any) -> None:
        def opened() -> SavedRun:
            from sftcore.tools.saved import open_run

            quiet()
            return open_run(run, adapter=adapter, base=base, trust_remote_code=trust_remote_code)

        function(run, opened, **others)

    for option in (
        click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model."),
        click.option("--base", metavar="MODEL", help="Base model, if it has moved since the run."),
        click.option("--adapter", metavar="NAME", help="Which adapter to use, if RUN holds several."),
        click.argument("run", metavar="RUN"),
    ):
        command = option(command)
    return command


def takes_recipe(function: F) -> F:
    """Add `[RECIPE] [KEY=VALUE]... --block`; the function gets them as `words` and `block`."""
    return click.argument("words", nargs=-1, metavar="[RECIPE] [KEY=VALUE]...")(_BLOCK(function))


def takes_data(function: Callable[..., None]) -> Callable[..., None]:
    """Add `DATA|RECIPE [KEY=VALUE]... --model --format --block`; the function gets the recipe that they describe."""

    @functools.wraps(function)
    def command(
        words: tuple[str, ...], model: str | None, format_choice: str | None, block: tuple[str, ...], **others: Any
    ) -> None:
        function(_recipe_from_data(words, model, format_choice, block), **others)

    for option in (
        _BLOCK,
        click.option(
            "--format", "format_choice", metavar="FORMAT", help="Read the rows in this format instead of detecting it."
        ),
        click.option("--model", metavar="MODEL", help="Hub id, folder or .gguf file whose tokenizer is used."),
        click.argument("words", nargs=-1, metavar="DATA|RECIPE [KEY=VALUE]..."),
    ):
        command = option(command)
    return command


def recipe_from(words: tuple[str, ...], block: tuple[str, ...]) -> Recipe:
    """The recipe that the arguments describe: an optional file, followed by overrides."""
    if not words:
        raise click.UsageError("Give a recipe file, key=value pairs or both: sftcore train model=… data=train.jsonl")
    first, rest = words[0], words[1:]
    is_file = "=" not in first or Path(first).is_file()
    return load_recipe(first, rest, block=block) if is_file else load_recipe(None, words, block=block)


def _recipe_from_data(
    words: tuple[str, ...], model: str | None, format_choice: str | None, block: tuple[str, ...]
) -> Recipe:
    """The recipe that the arguments describe: a recipe file, or data (a pattern, a folder, a hub id or several files).

    If no model is given, the recipe's model has no name.
    """
    data = list(itertools.takewhile(_is_path_or_name, words))
    path = data.pop() if len(data) == 1 and _is_recipe(data[0]) else None
    overrides = list(words[len(data) + (path is not None) :])
    if not data and path is None and not any(word.startswith(("data=", "data.")) for word in overrides):
        raise click.UsageError(
            "Give data or a recipe first, such as train.jsonl, 'data/*.jsonl', owner/name, recipe.yaml"
        )
    given = [] if not data else [f"data={_as_yaml(data[0] if len(data) == 1 else data)}"]
    if model is not None:
        given.append(f"model={_as_yaml(model)}")
    if format_choice is not None:
        given.append(f"format={format_choice}")
    if path is not None or any(word.startswith(("model=", "model.")) for word in (*given, *overrides)):
        return load_recipe(path, [*given, *overrides], block=block)
    recipe = load_recipe(None, ["model=none", *given, *overrides], block=block)
    return attrs.evolve(recipe, model=ModelRequest())


def _is_path_or_name(word: str) -> bool:
    return "=" not in word or Path(word).exists()


def _is_recipe(word: str) -> bool:
    return word.lower().endswith((".yaml", ".yml")) or (Path(word).is_file() and not Path(word).suffix)


def _as_yaml(value: str | list[str]) -> str:
    """The value in quotes, since a path may contain characters that mean something in YAML: `*`, `#`, `: `."""
    return json.dumps(value, ensure_ascii=False)
