"""`sftcore new-plugin`: write a complete distribution for a new plugin."""

from __future__ import annotations

from pathlib import Path

import click

from sftcore.core.visible import visible


@click.command("new-plugin")
@click.argument("kind")
@click.argument("name")
@click.option(
    "--path",
    "parent",
    default=".",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Make the new folder in this one.  [default: the current folder]",
)
def command(kind: str, name: str, parent: Path) -> None:
    """Write a distribution with a plugin of this KIND, which recipes will call NAME, and its tests.

    Kinds: format, collator, loader, adapter, attention, kernel, loss, noise.
    """
    from sftcore.scaffold.new_plugin import new_plugin

    folder = new_plugin(kind, name, parent)
    written = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    click.echo(visible(f"written: {folder}"))
    for file in written:
        click.echo(f"  {file}")
    click.echo(visible(f'next:    pip install -e "{folder}[test]"'))
    click.echo(visible(f"         sftcore plugin test {folder}"))
