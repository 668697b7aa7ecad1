"""`sftcore chat`: talk to a trained model in the terminal, with or without its adapter."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from sftcore.cli.recipe_arguments import takes_dtype, takes_run

if TYPE_CHECKING:
    from sftcore.tools.saved import SavedRun


@click.command("chat")
@takes_run
@click.option("--prompt", metavar="TEXT", help="Answer this one prompt and exit; - reads the prompt from stdin.")
@click.option("--system", metavar="TEXT", help="System prompt of the conversation.")
@click.option("--compare", is_flag=True, help="Show the answers with and without the adapter side by side.")
@click.option("--no-adapter", is_flag=True, help="Answer with the base model alone.")
@click.option(
    "--max-new-tokens",
    default=512,
    show_default=True,
    type=click.IntRange(min=1),
    help="Maximum number of tokens in an answer.",
)
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Sampling temperature; 0 always takes the most likely token.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Sample only from the most likely tokens whose probabilities add up to this.",
)
@click.option("--seed", type=int, help="Seed for sampling, so that an answer can be reproduced.")
@takes_dtype
def command(
    run: str,
    opened: Callable[[], SavedRun],
    prompt: str | None,
    system: str | None,
    compare: bool,
    no_adapter: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float | None,
    seed: int | None,
    dtype: str,
) -> None:
    """Chat with RUN: a run's output folder, a checkpoint in it, an adapter, or any model.

    The model is prompted with the chat template and the stop tokens of its run. During the conversation, /help lists
    the available commands.
    """
    for name, given in (("--top-p", top_p), ("--seed", seed)):
        if given is not None and temperature == 0:
            raise click.UsageError(f"{name} has no effect at temperature 0. Set --temperature too.")
    if compare and no_adapter:
        raise click.UsageError("--compare and --no-adapter cannot be combined.")
    saved = opened()
    if saved.adapter is None and (compare or no_adapter):
        raise click.UsageError(f"{run} is a whole model, so it has no adapter to switch off.")
    from sftcore.chat.served.generation import Sampling
    from sftcore.tools.chat_loop import Chat
    from sftcore.tools.chat_model import load_chat_model

    if prompt == "-" and not (prompt := sys.stdin.read().strip()):
        raise click.UsageError("--prompt - reads the prompt from stdin, but stdin is empty.")
    sampling = Sampling(max_new_tokens, temperature, 1.0 if top_p is None else top_p, seed)
    model = load_chat_model(saved, dtype=dtype)
    chat = Chat(model, sampling, system=system, adapter=not no_adapter, compare=compare)
    for note in saved.notes:
        chat.show_notice(f"note: {note}")
    if prompt is not None:
        chat.ask(prompt)
        return
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):  # Windows has none
            importlib.import_module("readline")  # gives input() a history and keys to edit with
        base = f" with its adapter on {saved.base.name}" if saved.adapter else ""
        dtype_name = str(model.model.dtype).removeprefix("torch.")
        chat.show_notice(f"{run}{base}, {dtype_name}. Type /help to list the commands, /exit to leave.")
    chat.run(lambda: input("> " if is_terminal else ""))
