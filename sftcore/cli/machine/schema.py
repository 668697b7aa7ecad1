"""`sftcore schema`: the JSON schema of recipes, for editors."""

from __future__ import annotations

import json

import click


@click.command("schema")
def command() -> None:
    """Print the JSON schema of recipes with the options of installed plugins; their modules are imported for that.

    Write it into a file beside your recipes (sftcore schema > recipe.schema.json), and begin them with the line
    # yaml-language-server: $schema=recipe.schema.json
    """
    from sftcore.config.described.schema import recipe_schema
    from sftcore.core.discovery import discover

    click.echo(json.dumps(recipe_schema(discover()), indent=2, ensure_ascii=False))
