"""`sftcore evaluate`: the loss of a finished run on rows that it was not trained on."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import click

from sftcore.cli.recipe_arguments import takes_dtype, takes_run
from sftcore.core.visible import visible

if TYPE_CHECKING:
    from sftcore.tools.saved import SavedRun

_NOT_GIVEN = {"include_path": (), "batch_size": 1, "apply_chat_template": False}
"""Defaults of the options that are of tasks alone; of others None."""


@click.command("evaluate")
@takes_run
@click.argument("words", nargs=-1, metavar="[DATA] [KEY=VALUE]...")
@click.option("--tasks", metavar="NAMES", help="Score tasks of lm-eval, with commas between them.")
@click.option("--include-path", multiple=True, metavar="FOLDER", help="A folder with tasks of your own; repeatable.")
@click.option("--limit", type=click.FloatRange(0, min_open=True), help="Samples of each task, or a share below 1.")
@click.option("--num-fewshot", type=click.IntRange(0), help="Examples before each sample, instead of the task's.")
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Samples of a task at a time.")
@click.option("--apply-chat-template", is_flag=True, help="Ask tasks as a chat, by the run's template.")
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
    **of_tasks: Any,
) -> None:
    """Evaluate RUN on DATA: loss, perplexity, token accuracy and entropy over the supervised tokens.

    RUN is a run's output folder, a checkpoint in it, an adapter, or any model. DATA is a file, a quoted pattern, a
    folder or a hub id; without it, the rows that the run itself evaluated on are read again. Format, masks and lengths
    are those of the run; KEY=VALUE pairs change them, as in format=chat or per_device_eval_batch_size=2.

    With --tasks, lm-eval (pip install lm-eval) scores the model on its tasks instead, and the scores are kept in
    tasks.json in the run's folder.
    """
    data, overrides = (words[0], words[1:]) if words and "=" not in words[0] else (None, words)
    saved = opened()
    if saved.adapter is None and no_adapter:
        raise click.UsageError(f"{run} is a whole model, so it has no adapter to leave out.")
    if of_tasks["tasks"] is not None:
        if words:
            raise click.UsageError("--tasks takes neither DATA nor KEY=VALUE.")
        _score(run, saved, of_tasks, as_json=as_json, dtype=dtype, adapter=not no_adapter)
        return
    if given := [name for name, value in of_tasks.items() if value != _NOT_GIVEN.get(name)]:
        raise click.UsageError(f"--{given[0].replace('_', '-')} is of --tasks.")
    from sftcore.tools.evaluate import evaluate, evaluation_rows

    with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints must not stand in the JSON
        checked = evaluation_rows(saved, data, overrides)
        found = evaluate(saved, checked, own_rows=data is None, dtype=dtype, adapter=not no_adapter)
    if as_json:
        click.echo(json.dumps({"schema": 1, "run": run, **found.as_dict()}, indent=2, ensure_ascii=False))
        return
    for line in (*(f"note: {note}" for note in found.notes), *found.rows):
        click.echo(visible(line), err=True)
    _say({"loss": found.loss, "perplexity": found.perplexity, "accuracy": found.accuracy, "entropy": found.entropy})
    for name, figures in found.sets.items():
        click.echo(visible(f"\n{name}"))
        _say(figures)


def _say(figures: Mapping[str, float | None]) -> None:
    for name, value in figures.items():
        if value is not None:
            click.echo(f"{name:<10} {value:{'.4g' if name == 'perplexity' else '.4f'}}")


def _score(run: str, saved: SavedRun, given: dict[str, Any], *, as_json: bool, dtype: str, adapter: bool) -> None:
    """Score the tasks, keep the scores of the run's own model, and print them."""
    from sftcore.tools.tasks.lm_eval import Asked, keep, lines_of, names_of, score

    asked = Asked(**{**given, "tasks": names_of(given["tasks"]), "include_path": tuple(given["include_path"])})
    with contextlib.redirect_stdout(sys.stderr):  # lm-eval's progress, and what tasks print
        scores = score(saved, asked, dtype=dtype, adapter=adapter)
        path = keep(saved, asked, scores) if adapter else None
    if as_json:
        found = {name: attrs.asdict(one) for name, one in scores.items()}
        click.echo(json.dumps({"schema": 1, "run": run, "tasks": found}, indent=2, ensure_ascii=False))
    else:
        for line in lines_of(scores):
            click.echo(visible(line))
    if path is not None:
        click.echo(visible(f"kept in {path}"), err=True)
