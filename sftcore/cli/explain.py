"""`sftcore explain`: the resolved plan of a recipe, and who answers each hook."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from sftcore.cli.recipe_arguments import recipe_from, takes_recipe
from sftcore.core.visible import visible

if TYPE_CHECKING:
    from sftcore.config.data.section import SourceSection
    from sftcore.config.recipe import Recipe
    from sftcore.config.setup import Setup
    from sftcore.core.registry import Bound


@click.command("explain")
@takes_recipe
@click.option("--diff", metavar="OTHER", help="Show what another recipe, or the run in a folder, does differently.")
def command(words: tuple[str, ...], block: tuple[str, ...], diff: str | None) -> None:
    """Show every value of a run with where it comes from, and which plugin answers each hook, in which order.

    With --diff, show only the values in which the run differs from another recipe, or from a run's manifest.
    """
    for line in _lines(words, block) if diff is None else _differences(words, block, diff):
        click.echo(visible(line))


def _differences(words: tuple[str, ...], block: tuple[str, ...], other: str) -> Iterator[str]:
    from sftcore.config.described.origins import MISSING, differences, values_by_path, values_of
    from sftcore.config.setup import set_up_recipe

    recipe = recipe_from(words, block)
    found = list(differences(values_by_path(recipe, set_up_recipe(recipe)), values_of(other)))
    counted = "1 value differs" if len(found) == 1 else f"{len(found)} values differ"
    yield f"{counted}: here, and in {other}" if found else f"No value differs from {other}."
    for path, mine, its in found:
        yield f"  {path:<40} {_spelled(mine, MISSING)}  |  {_spelled(its, MISSING)}"


def _lines(words: tuple[str, ...], block: tuple[str, ...]) -> Iterator[str]:
    from sftcore.config.setup import set_up_recipe
    from sftcore.core.hookspecs import LIFECYCLE, ONE_ANSWER
    from sftcore.core.types import AUTO

    recipe = recipe_from(words, block)
    setup = set_up_recipe(recipe)
    bound = list(setup.plugins.bound)
    sources = recipe.data.sources
    formats = [_format_of(one, setup) for one in sources]
    if len(sources) == 1 and formats[0] is not None:
        bound = [formats[0], *(one for one in bound if one.entry.kind != "format")]
    yield f"recipe   {recipe.place}"
    yield f"model    {recipe.model.name}"
    for source, found in zip(sources, formats, strict=True):
        yield f"data     {_described(source, found if len(sources) > 1 else None)}"
    if any(source.weight is not None for source in sources):
        yield f"         mixed by weight, stop: {recipe.data.stop}"
    for name, some in recipe.data.eval_sets.items():
        yield f"eval     {f'{name}: ' if name else ''}{', '.join(_described(each, None) for each in some)}"
    yield ""
    yield "Plugins, in the order in which hooks ask them:"
    if not any(one.entry.kind == "format" for one in bound):
        yield f"  format     {AUTO}: chosen by the columns once the data are loaded"
    for one in bound:
        asked = "default" if one.selection.default else f"asked for in {one.selection.path}"
        if one.selection.path == AUTO and (reason := setup.plan.reasons.get(one.entry.kind)):
            asked = f"{AUTO}: {reason}"
        options = ", ".join(f"{key}={value!r}" for key, value in one.selection.options.items())
        yield f"  {one.entry.kind:<10} {one.entry.name}@{one.entry.distribution} {one.entry.version} ({asked})" + (
            f" with {options}" if options else ""
        )
    for default, winner in setup.plugins.yielded:
        yield f"  yielded    default {default.label} to {winner.label}"
    yield ""
    yield "Hooks, in the order of a run:"
    for hook in LIFECYCLE:
        answers = [one for one in bound if one.implements(hook)]
        if not answers:
            nobody = "the format, once the columns are known" if hook == "make_formatter" else "nobody"
            yield f"  {hook:<18} {nobody if hook in ONE_ANSWER else '-'}"
        for i, one in enumerate(answers):
            around = "  around the others" if one.wraps(hook) else ""
            who = f"{one.entry.name}@{one.entry.distribution}"
            yield f"  {hook if i == 0 else '':<18} {who}  {one.source(hook)}{around}"
    yield ""
    yield "Values, and where each comes from:"
    yield from _with_origins(words, recipe, setup)


def _with_origins(words: tuple[str, ...], recipe: Recipe, setup: Setup) -> Iterator[str]:
    """A line for each value, those that somebody set before the defaults."""
    from sftcore.config.described.origins import origins

    keys = [word.partition("=")[0] for word in words if "=" in word]
    found = sorted(origins(recipe, setup, keys), key=lambda one: one.whose.startswith("default"))
    for one in found:
        yield f"  {one.path:<40} {_spelled(one.value):<24} ({one.whose})"


def _spelled(value: Any, missing: Any = None) -> str:
    """A value as a recipe writes it, on one line."""
    return str(value) if missing is not None and value == missing else json.dumps(value, ensure_ascii=False)


def _format_of(section: SourceSection, setup: Setup) -> Bound | None:
    """The format that reads a source; None where its columns are not known before it is loaded."""
    from sftcore.data.format import choose_format
    from sftcore.data.mixing.mixture import with_format
    from sftcore.data.source.files import first_rows, local_files

    own = with_format(setup, section.format)
    named = [one for one in own.plugins.bound if one.entry.kind == "format"]
    files = None if named else local_files(section.path, section.sample_by)
    rows = first_rows(files, 1000) if files else []
    if not rows or files is None:
        return named[0] if named else None
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    sample = [row for _, row in rows]
    return choose_format(own, columns, section.labelled(files.label), rows=lambda: sample)


def _described(section: SourceSection, bound: Bound | None) -> str:
    path = section.path if isinstance(section.path, str) else ", ".join(section.path)
    said = [f"format {bound.entry.name}"] if bound is not None else []
    said += [f"weight {section.weight:g}"] if section.weight is not None else []
    said += [f"split {section.split}"] if "[" in section.split else []
    said += [f"the first {section.rows:,} rows"] if section.rows is not None else []
    return section.labelled(path) + (f" ({', '.join(said)})" if said else "")
