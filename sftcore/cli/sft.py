"""`sftcore sft`: train with the arguments of `trl sft`."""

from __future__ import annotations

import os
import warnings

import click

from sftcore.cli.quiet import no_bars
from sftcore.core.visible import visible
from sftcore.train.guard.signals import exits_cleanly


@click.command("sft", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[--config FILE] [--OPTION VALUE]...")
@exits_cleanly()
def command(words: tuple[str, ...]) -> None:
    """Train with the arguments of `trl sft`: fields of SFTConfig, ModelConfig and ScriptArguments as options.

    Options of `accelerate launch` start several processes.
    """
    draws = no_bars()
    is_first = os.environ.get("RANK", "0") == "0"
    if not is_first:
        warnings.simplefilter("ignore")  # the first process shows the same warnings
    from rich.console import Console
    from transformers import PrinterCallback, ProgressCallback

    from sftcore.compat.sft_script import run
    from sftcore.display.choice import view_for
    from sftcore.display.stages import shown_by
    from sftcore.display.streams import lasting_streams
    from sftcore.train.reporting.progress import RichProgress
    from sftcore.train.trainer import SFTTrainer

    def show_progress(trainer: SFTTrainer) -> None:
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        view = view_for(console, draws=draws and not trainer.args.disable_tqdm)
        trainer.add_callback(RichProgress(console, trainer.metrics, view=view))

    with lasting_streams():
        console = Console(quiet=not is_first)
        with shown_by(view_for(console, draws=draws)):
            folder = run(words, show_progress)
        if is_first:
            click.echo(visible(f"saved in {folder}"))
