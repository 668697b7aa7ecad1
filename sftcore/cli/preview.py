"""`sftcore preview`: show a row with its supervised tokens in colour, in the terminal or as an HTML page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sftcore.cli.quiet import no_bars
from sftcore.cli.recipe_arguments import takes_data
from sftcore.core.visible import visible
from sftcore.util.disk import writing

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from sftcore.config.recipe import Recipe
    from sftcore.report.pieces import Piece
    from sftcore.tools.preview import Preview


@click.command("preview")
@takes_data
@click.option(
    "--row", default=0, show_default=True, type=click.IntRange(min=0), help="Number of the row to show, from 0."
)
@click.option("--source", metavar="NAME", help="Which of several sources the row is of; the first by default.")
@click.option(
    "--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML page to this file instead."
)
def command(recipe: Recipe, row: int, source: str | None, page: Path | None) -> None:
    """Show a row as the model will see it, with supervised tokens in colour and special tokens visible.

    It takes a data file, or the same arguments as `train`; no weights are read. With packing=true, row N is the packed
    block N, and its documents are shown apart. Of several sources, --source names one.

    For example: sftcore preview train.jsonl --model MODEL --row 3
    """
    if recipe.model.name is None:
        raise click.UsageError(
            "Name the model whose tokenizer reads the row: --model HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    no_bars(always=True)  # reading one row is too short for progress bars
    from sftcore.tools.preview import preview

    previews = preview(recipe, row, source)
    if page is not None:
        from sftcore.tools.preview_page import html_page

        with writing("the page", page):
            page.write_text(html_page(previews, ", ".join(one.name for one in recipe.data.sources)), encoding="utf-8")
        click.echo(f"written to {page}")
        return

    from rich.console import Console

    console = Console()
    for one in previews:
        _show(console, one)


def _show(console: Console, one: Preview) -> None:
    from rich.text import Text

    from sftcore.tools.preview import CUT_SHOWN
    from sftcore.tools.preview_page import document_heading

    console.print(Text(one.caption, "bold"), soft_wrap=True)
    if one.dropped:
        console.print(Text(visible(f"A run drops this row: {one.dropped}."), "yellow"), soft_wrap=True)
    for note in one.notes:
        console.print(Text(visible(note), "yellow"), soft_wrap=True)
    for line in one.proof:
        console.print(Text(visible(line), "cyan"), soft_wrap=True)
    for index, document in enumerate(one.documents):
        if one.capacity is not None:
            console.print(Text(f"── {document_heading(index, document, len(one.documents))}", "cyan"), soft_wrap=True)
        for number, picture in enumerate(document.pictures):
            console.print(Text(f"image {number + 1}: {visible(str(picture))}", "cyan"), soft_wrap=True)
        counts: Counter[str] = Counter()
        for medium in document.media:
            counts[medium.kind] += 1
            said = f"{medium.kind} {counts[medium.kind]}: {visible(str(medium))}"
            console.print(Text(said, "cyan"), soft_wrap=True)
        show = _coloured if console.color_system else _uncoloured
        console.print(show(document.segments), soft_wrap=True)
    if one.cut > CUT_SHOWN:
        console.print(Text(f"{one.cut - CUT_SHOWN:,} more tokens are cut away.", "red"), soft_wrap=True)


def _coloured(segments: tuple[Piece, ...]) -> Text:
    """Supervised text is green, or yellow with a weight below 1; special tokens are inverse; cut text is struck out."""
    from rich.text import Text

    text = Text()
    for segment in segments:
        supervised = "black on green" if segment.weight == 1 else "black on yellow"
        styles = [supervised if segment.weight else "dim"]
        if segment.special:
            styles.append("bold" if segment.weight else "reverse")
        if segment.cut:
            styles = ["red strike"]
        text.append(segment.text, " ".join(styles))
        if 0 < segment.weight < 1 and not segment.special and not segment.cut:
            text.append(f"×{segment.weight:g}", "yellow")
    return text


def _uncoloured(segments: tuple[Piece, ...]) -> Text:
    """Marks for output without colours: «supervised», «0.5: supervised with this weight», [cut: …]."""
    from itertools import groupby

    from rich.text import Text

    text = Text()
    for cut, alike in groupby(segments, key=lambda segment: segment.cut):
        parts = []
        for weight, group in groupby(alike, key=lambda segment: segment.weight):
            joined = "".join(segment.text for segment in group)
            parts.append(joined if not weight else f"«{joined}»" if weight == 1 else f"«{weight:g}: {joined}»")
        joined = "".join(parts)
        text.append(f"[cut: {joined}]" if cut else joined)
    return text
