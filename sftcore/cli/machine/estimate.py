"""`sftcore estimate`: what a run will take, before it is started."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from sftcore.cli.quiet import quiet
from sftcore.cli.recipe_arguments import recipe_from, takes_recipe
from sftcore.core.visible import visible

if TYPE_CHECKING:
    from sftcore.tools.estimate.cheapest import Fitting
    from sftcore.tools.estimate.estimate import Estimate

SCHEMA = 1


@click.command("estimate")
@takes_recipe
@click.option("--memory", metavar="SIZE", help="What the run may take, as 24GB: name the cheapest change that fits.")
@click.option("--probe", is_flag=True, help="Load the model and train a few steps aside, for the time of the run.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def command(words: tuple[str, ...], block: tuple[str, ...], memory: str | None, probe: bool, as_json: bool) -> None:
    """Say how much memory a run takes, and how many steps and tokens it is, without loading its model.

    The rows are prepared as for the run, which then finds them; one step and an evaluation are run on shapes alone.
    The exit code is 1 if the run takes more than --memory.
    """
    from sftcore.data.store.prune import limit_of

    quiet()
    limit = None if memory is None else limit_of(memory, where="--memory")
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        found, fitting = _estimated(words, block, limit, probe=probe)
    fits = limit is None or found.memory.peak <= limit
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, **found.as_dict(), "limit": limit, "fits": fits, **_fitting(fitting)}))
    else:
        for line in (*_lines(found), *_advice(found, fitting, limit)):
            click.echo(visible(line))
    if not fits:
        sys.exit(1)


def _estimated(
    words: tuple[str, ...], block: tuple[str, ...], limit: int | None, *, probe: bool
) -> tuple[Estimate, Fitting | None]:
    from sftcore.config.sft_config import SFTConfig
    from sftcore.tools.estimate.cheapest import cheapest_change
    from sftcore.tools.estimate.estimate import estimate
    from sftcore.train.run import check_recipe, config_of

    def estimated(more: Sequence[str]) -> Estimate:
        return estimate(check_recipe(recipe_from((*words, *more), block)))

    checked = check_recipe(recipe_from(words, block))
    found = estimate(checked, probe=probe)
    if limit is None or found.memory.peak <= limit:
        return found, None
    fitting = cheapest_change(
        vars(SFTConfig(**config_of(checked.recipe))),
        has_adapter=bool(checked.setup.plan.selected("adapter")),
        max_length=found.longest,
        limit=limit,
        estimated=estimated,
    )
    return found, fitting


def _fitting(fitting: Fitting | None) -> dict[str, Any]:
    if fitting is None:
        return {"change": None}
    change = fitting.change
    return {"change": {"settings": list(change.words), "cost": change.cost, "peak": fitting.found.memory.peak,
                       "fits": fitting.fits}}  # fmt: skip


def _lines(found: Estimate) -> Iterator[str]:
    memory, (rows, tokens) = found.memory, found.batch
    when = "evaluation" if memory.evaluation > memory.training else "training"
    yield f"peak         {sized(memory.peak):>10}  on {found.device}, in {when}"
    yield f"  weights    {sized(memory.weights):>10}  of which {sized(memory.trained)} train"
    yield f"  optimizer  {sized(memory.optimizer):>10}"
    yield f"  gradients  {sized(memory.gradients):>10}  once all are there"
    of = f"of {rows} rows, {tokens:,} tokens, {found.layout}, attention {found.attention}"
    yield f"  activations{sized(memory.activations):>10}  {of}"
    if memory.evaluation:
        yield f"evaluation   {sized(memory.evaluation):>10}"
    many = "a stream" if found.rows is None else f"{found.rows:,} rows"
    yield f"steps        {found.steps:>10,}  of {many}" + ("" if found.tokens is None else f", {found.tokens:,} tokens")
    if found.seconds is not None:
        yield f"time         {_spelled(found.seconds):>10}  of training, by the speed of a few steps"


def _advice(found: Estimate, fitting: Fitting | None, limit: int | None) -> Iterator[str]:
    if limit is None:
        return
    if found.memory.peak <= limit:
        yield f"fits         into {sized(limit)}"
        return
    yield f"too much     for {sized(limit)}"
    if fitting is None:
        yield "change       none of the changes that are known goes with this recipe"
        return
    label = "cheapest" if fitting.fits else "smallest"
    enough = "" if fitting.fits else ", which does not fit either"
    yield f"{label}     {' '.join(fitting.change.words)}  takes {sized(fitting.found.memory.peak)}{enough}"
    yield f"  cost       {fitting.change.cost}"


def sized(size: int) -> str:
    """Bytes in the unit that suits them."""
    number, units = float(size), iter(("B", "KiB", "MiB", "GiB"))
    unit = next(units)
    while number >= 1024 and (larger := next(units, "")):
        number, unit = number / 1024, larger
    return f"{number:,.1f} {unit}"


def _spelled(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:,.0f} s" if minutes < 2 else f"{minutes:,.0f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"
