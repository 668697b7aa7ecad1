"""`sftcore quantize`: store a trained model in a few bits per weight, and measure it before and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sftcore.cli.quiet import table_width
from sftcore.cli.recipe_arguments import takes_run
from sftcore.core.visible import visible

if TYPE_CHECKING:
    from rich.table import Table

    from sftcore.tools.quantization.outcome import Options, Outcome
    from sftcore.tools.saved import SavedRun


@click.command("quantize")
@takes_run
@click.option(
    "--method", default="gptq", show_default=True, metavar="NAME", help="Quantisation method; only gptq is available."
)
@click.option("--bits", default="4", show_default=True, type=click.Choice(["4", "8"]), help="Bits per weight.")
@click.option(
    "--group-size",
    type=click.IntRange(min=1),
    help="Number of weights that share a scale. Default: 128, or the largest smaller power of two that divides the "
    "width of every layer.",
)
@click.option(
    "--samples", default=256, show_default=True, type=click.IntRange(min=1), help="Number of rows to calibrate on."
)
@click.option(
    "--max-length",
    default=512,
    show_default=True,
    type=click.IntRange(min=2),
    help="Cut calibration rows to this many tokens.",
)
@click.option("--data", metavar="DATA", help="Calibrate on this file, folder or hub id instead of the run's own rows.")
@click.option(
    "--dtype",
    default="bfloat16",
    show_default=True,
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Data type of whatever is not quantised: embeddings, head, norms and scales.",
)
@click.option(
    "--output",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder for the quantised model. Default: RUN-gptq-4bit.",
)
@click.option("--seed", default=42, show_default=True, help="Seed for shuffling rows.")
def command(run: str, opened: Callable[[], SavedRun], output: Path | None, **choices: Any) -> None:
    """Quantise the model of RUN, calibrated on the rows that it was trained on.

    RUN is a run's output folder, a checkpoint in it, or any model. An adapter is merged first. The quantised model is
    loaded again with transformers alone, and its perplexity is compared with that of the original model.
    """
    from sftcore.tools.quantization.outcome import Options
    from sftcore.tools.quantization.quantize import method_named, quantize

    choices["bits"] = int(choices["bits"])
    options = Options(**choices)
    method_named(options.method)
    folder = output or Path(f"{run.rstrip('/')}-{options.method}-{options.bits}bit")
    outcome = quantize(opened(), folder, options, say=lambda line: click.echo(visible(line), err=True))
    for note in outcome.notes:
        click.echo(visible(f"note: {note}"), err=True)
    from rich.console import Console

    Console(width=table_width()).print(_table(outcome, options))
    click.echo(visible(f"saved in {outcome.folder} after {outcome.seconds:.0f} s"))


def _table(outcome: Outcome, options: Options) -> Table:
    from rich.box import ROUNDED
    from rich.table import Table

    before, after = outcome.before, outcome.after
    table = Table("", "before", f"{options.bits} bits, groups of {outcome.group_size}", "change", box=ROUNDED)
    for column in table.columns[1:]:
        column.justify = "right"
    for label, count, old, new in (
        ("supervised", before.num_supervised, before.supervised, after.supervised),
        ("all", before.num_tokens, before.every, after.every),
    ):
        table.add_row(f"perplexity, {label} ({count:,} tokens)", f"{old:.3f}", f"{new:.3f}", f"{new / old - 1:+.1%}")
    sizes = outcome.bytes_before, outcome.bytes_after
    table.add_row("weights on disk", *(f"{size / 2**20:,.1f} MiB" for size in sizes), f"{sizes[1] / sizes[0] - 1:+.1%}")
    return table
