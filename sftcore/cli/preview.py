"""`sftcore preview`: a row with its supervised tokens in colour, in the terminal or as a page."""

from __future__ import annotations

import os
from pathlib import Path

import click

from sftcore.cli.recipe_arguments import recipe_from, takes_recipe


@click.command("preview")
@takes_recipe
@click.option("--row", default=0, show_default=True, type=click.IntRange(min=0), help="Which row, counted from 0.")
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write a page instead.")
def command(words: tuple[str, ...], block: tuple[str, ...], row: int, page: Path | None) -> None:
    """Show a row as the model will see it: what is supervised in colour, special tokens visible.

    Takes what `train` takes; no weights are read. For example: sftcore preview model=… data=train.jsonl --row 3
    """
    from sftcore.run.preview import as_page, preview

    os.environ.setdefault("TQDM_DISABLE", "1")  # reading one row needs no bars
    recipe = recipe_from(words, block)
    previews = preview(recipe, row)
    if page is not None:
        page.write_text(as_page(previews, f"{recipe.data.train}"), encoding="utf-8")
        click.echo(f"written to {page}")
        return

    from rich.console import Console
    from rich.text import Text

    console = Console()
    for one in previews:
        console.print(one.caption, style="bold", highlight=False)
        text = Text()
        for segment in one.segments:
            # without colours the borders must show all the same
            shown = segment.text if console.color_system else f"«{segment.text}»"
            text.append(shown if segment.weight else segment.text, "black on green" if segment.weight else "dim")
        console.print(text, soft_wrap=True)
