"""The arguments shared by several verbs: a recipe, data instead of one, or a run's folder."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click
from click.shell_completion import CompletionItem

from sftcore.cli.quiet import quiet
from sftcore.config.recipe import SECTIONS, Recipe, load_recipe
from sftcore.core.errors import RecipeError, SFTCoreError
from sftcore.core.types import ModelRequest
from sftcore.data.source.files import BUILDERS

if TYPE_CHECKING:
    from sftcore.tools.saved import SavedRun
_RECIPES = (".yaml", ".yml")
_BLOCK = click.option("--block", multiple=True, metavar="KIND:NAME", help="Never use this plugin; may be repeated.")


def _model(text: str) -> Any:
    return click.option("--model", metavar="MODEL", help=text)


def _data(text: str) -> Any:
    return click.option("--data", multiple=True, metavar="DATA", help=text)


def _completed(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Settings that a word may become, and files where it is none."""
    from sftcore.config.described.words import completed
    from sftcore.core.discovery import discover

    before = ctx.params.get("words") or ()
    words = [CompletionItem(one) for one in completed(incomplete, before, discover())]
    return words if words and (incomplete or before) else [CompletionItem(incomplete, type="file"), *words]


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


def takes_recipe(function: Callable[..., None]) -> Callable[..., None]:
    """Add `[RECIPE] [KEY=VALUE]... --model --data --block`; the function gets `block`, and all the rest as `words`."""

    @functools.wraps(function)
    def command(words: tuple[str, ...], model: str | None, data: tuple[str, ...], **others: Any) -> None:
        function(words=_with_given(words, model, data), **others)

    for option in (
        _BLOCK,
        _data("Data to train on, instead of data=…; may be repeated."),
        _model("Hub id, folder or .gguf file of the model, instead of model=…"),
        click.argument("words", nargs=-1, metavar="[RECIPE] [KEY=VALUE]...", shell_complete=_completed),
    ):
        command = option(command)
    return command


def takes_data(function: Callable[..., None]) -> Callable[..., None]:
    """Add `DATA|RECIPE [KEY=VALUE]... --model --data --format --block`; the function gets the recipe of all these."""

    @functools.wraps(function)
    def command(
        words: tuple[str, ...],
        model: str | None,
        data: tuple[str, ...],
        format_choice: str | None,
        block: tuple[str, ...],
        **others: Any,
    ) -> None:
        function(_recipe_from_data(words, data, model, format_choice, block), **others)

    for option in (
        _BLOCK,
        click.option(
            "--format", "format_choice", metavar="FORMAT", help="Read the rows in this format instead of detecting it."
        ),
        _data("The same as DATA; may be repeated."),
        _model("Hub id, folder or .gguf file whose tokenizer is used."),
        click.argument("words", nargs=-1, metavar="DATA|RECIPE [KEY=VALUE]...", shell_complete=_completed),
    ):
        command = option(command)
    return command


def recipe_from(words: tuple[str, ...], block: tuple[str, ...]) -> Recipe:
    """The recipe that the arguments describe: an optional file, followed by overrides."""
    if not words:
        raise click.UsageError(
            "Give a recipe file, key=value pairs or both: sftcore train --model MODEL --data train.jsonl max_length=512"
        )
    first, rest = words[0], words[1:]
    if not _is_file_or_name(first):
        return load_recipe(None, words, block=block)
    if advice := _not_a_recipe(first):
        raise click.UsageError(advice)
    try:
        return load_recipe(first, rest, block=block)
    except SFTCoreError:
        if other := _of_another_tool(first):
            raise RecipeError(other[0], fix=other[1]) from None
        raise


def _of_another_tool(word: str) -> tuple[str, str] | None:
    """What a file is that was made for another tool, and what to do with it; looked at only if it is no recipe."""
    from sftcore.importers.bring import PEERS
    from sftcore.importers.detect import detect

    if not Path(word).is_file() or not (tool := detect(Path(word))):
        return None
    what = f"{word} looks like a configuration of {PEERS[tool].title}, not a recipe."
    return what, f"Turn it into one: sftcore import {tool} {word} -o recipe.yaml"


def _not_a_recipe(word: str) -> str:
    """What to write instead of a first word that is data, a model or a setting; empty if it may be a recipe."""
    path = Path(word)
    if path.suffix.lower() in BUILDERS:
        return f"{word} is data, not a recipe. Write: --data {word}"
    if path.is_dir() or path.suffix.lower() == ".gguf":
        return f"{word} is a {'folder' if path.is_dir() else 'model'}, not a recipe. If it is the model: --model {word}"
    if path.is_file() and path.suffix.lower() not in _RECIPES and (found := _of_another_tool(word)):
        return f"{found[0]} {found[1]}"
    if path.exists() or path.suffix.lower() in _RECIPES:
        return ""
    from sftcore.config.fields import config_fields

    key = word.rstrip(":").replace("-", "_")
    if key in {*SECTIONS, *config_fields()}:
        return f"{word} is a setting, and settings are written key=value, without spaces: {key}=…"
    return f"there is no recipe at {word}. If it is the model: --model {word}" if word.count("/") == 1 else ""


def _with_given(words: tuple[str, ...], model: str | None, data: tuple[str, ...]) -> tuple[str, ...]:
    """The words with model and data among them as key=value, before the overrides."""
    given = []
    for key, inner, value in (("model", "name", model), ("data", "train", data[0] if len(data) == 1 else list(data))):
        if not value:
            continue
        if twice := [word for word in words if word.startswith((f"{key}=", f"{key}.{inner}="))]:
            raise click.UsageError(f"The {key} is given twice: --{key} and {twice[0]}. Keep one of them.")
        given.append(f"{key}={_as_yaml(value)}")
    has_file = bool(words) and _is_file_or_name(words[0])
    return (*words[:has_file], *given, *words[has_file:])


def _recipe_from_data(
    words: tuple[str, ...],
    named: tuple[str, ...],
    model: str | None,
    format_choice: str | None,
    block: tuple[str, ...],
) -> Recipe:
    """The recipe that the arguments describe: a recipe file, or data (a pattern, a folder, a hub id or several files).

    `named` are the data given by --data. If no model is given, the recipe's model has no name.
    """
    data = list(itertools.takewhile(_is_path_or_name, words))
    overrides = list(words[len(data) :])
    path = data.pop() if len(data) == 1 and _is_recipe(data[0]) else None
    data += named
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


def _is_file_or_name(word: str) -> bool:
    return "=" not in word or Path(word).is_file()


def _is_path_or_name(word: str) -> bool:
    return "=" not in word or Path(word).exists()


def _is_recipe(word: str) -> bool:
    return word.lower().endswith(_RECIPES) or (Path(word).is_file() and not Path(word).suffix)


def _as_yaml(value: str | list[str]) -> str:
    """The value in quotes, since a path may contain characters that mean something in YAML: `*`, `#`, `: `."""
    return json.dumps(value, ensure_ascii=False)
