"""`sftcore explain`: the resolved plan of a recipe, and who answers each hook."""

from __future__ import annotations

from collections.abc import Iterator

import click

from sftcore.cli.recipe_arguments import recipe_from, takes_recipe
from sftcore.core.visible import visible


@click.command("explain")
@takes_recipe
def command(words: tuple[str, ...], block: tuple[str, ...]) -> None:
    """Show which plugin answers each hook of a run, from which distribution, file and line, in which order."""
    for line in _lines(words, block):
        click.echo(visible(line))


def _lines(words: tuple[str, ...], block: tuple[str, ...]) -> Iterator[str]:
    from sftcore.config.setup import set_up_recipe
    from sftcore.core.hookspecs import LIFECYCLE, ONE_ANSWER
    from sftcore.core.types import AUTO
    from sftcore.data.format import choose_format
    from sftcore.data.source.files import first_rows, local_files

    recipe = recipe_from(words, block)
    setup = set_up_recipe(recipe)
    bound = list(setup.plugins.bound)
    if not any(one.entry.kind == "format" for one in bound):
        files = local_files(recipe.data.train)
        rows = first_rows(files, 1000) if files else []
        if rows and files:
            columns = list(dict.fromkeys(key for _, row in rows for key in row))
            bound.insert(
                0, choose_format(setup.plan, setup.plugins, setup.catalog, setup.blocked, columns, files.label)
            )
    yield f"recipe   {recipe.place}"
    yield f"model    {recipe.model.name}"
    yield f"data     {recipe.data.train}"
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
