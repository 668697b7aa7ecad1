"""`sftcore evaluate`: the loss of a finished run on rows that it was not trained on."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from sftcore.cli.recipe_arguments import takes_dtype, takes_run
from sftcore.core.visible import visible

if TYPE_CHECKING:
    from sftcore.tools.saved import SavedRun


@click.command("evaluate")
@takes_run
@click.argument("words", nargs=-1, metavar="[DATA] [KEY=VALUE]...")
@click.option("--no-adapter", is_flag=True, help="Evaluate the base model alone.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@takes_dtype
def command(
    run: str,
    opened: Callable[[], SavedRun],
    words: tuple[str, ...],
    no_adapter: bool,
    as_json: bool,
    dtype: str,
) -> None:
    """Evaluate RUN on DATA: loss, perplexity, token accuracy and entropy over the supervised tokens.

    RUN is a run's output folder, a checkpoint in it, an adapter, or any model. DATA is a file, a quoted pattern, a
    folder or a hub id; without it, the rows that the run itself evaluated on are read again. Format, masks and lengths
    are those of the run; KEY=VALUE pairs change them, as in format=chat or per_device_eval_batch_size=2.
    """
    data, overrides = (words[0], words[1:]) if words and "=" not in words[0] else (None, words)
    saved = opened()
    if saved.adapter is None and no_adapter:
        raise click.UsageError(f"{run} is a whole model, so it has no adapter to leave out.")
    from sftcore.tools.evaluate import evaluate, evaluation_rows

    with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints must not stand in the JSON
        checked = evaluation_rows(saved, data, overrides)
        found = evaluate(saved, checked, own_rows=data is None, dtype=dtype, adapter=not no_adapter)
    if as_json:
        click.echo(json.dumps({"schema": 1, "run": run, **found.as_dict()}, indent=2, ensure_ascii=False))
        return
    for line in (*(f"note: {note}" for note in found.notes), *found.rows):
        click.echo(visible(line), err=True)
    for name, value in (
        ("loss", f"{found.loss:.4f}"),
        ("perplexity", None if found.perplexity is None else f"{found.perplexity:.4g}"),
        ("accuracy", f"{found.accuracy:.4f}"),
        ("entropy", None if found.entropy is None else f"{found.entropy:.4f}"),
    ):
        if value is not None:
            click.echo(f"{name:<10} {value}")
