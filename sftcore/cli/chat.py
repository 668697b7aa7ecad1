"""`sftcore chat`: ask a run in the terminal, with its adapter and without."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress

import click


@click.command("chat")
@click.argument("run", metavar="RUN")
@click.option("--prompt", metavar="TEXT", help="Ask this, print the answer alone and leave; - reads it from stdin.")
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option("--compare", is_flag=True, help="Answer with the adapter and without, side by side.")
@click.option("--no-adapter", is_flag=True, help="Answer as the base does.")
@click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(min=1), help="Longest answer.")
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="0 takes the most likely token each time; above, tokens are drawn.",
)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw from the likeliest that make up this.")
@click.option("--seed", type=int, help="Draw the same again.")
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Of the weights; auto is the model's own.",
)
@click.option("--adapter", metavar="NAME", help="Which one, where RUN holds several.")
@click.option("--base", metavar="MODEL", help="The base, where the run's own name for it leads nowhere.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the model brings along.")
def command(
    run: str,
    prompt: str | None,
    system: str | None,
    compare: bool,
    no_adapter: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float | None,
    seed: int | None,
    dtype: str,
    adapter: str | None,
    base: str | None,
    trust_remote_code: bool,
) -> None:
    """Talk to RUN: a run's output folder, a checkpoint in it, an adapter, or any model.

    The answers use the run's own template and stop tokens. In the conversation, /help lists the commands.
    """
    for name, given in (("--top-p", top_p), ("--seed", seed)):
        if given is not None and temperature == 0:
            raise click.UsageError(f"{name} does nothing while the most likely token is taken: set --temperature too.")
    if compare and no_adapter:
        raise click.UsageError("--compare and --no-adapter exclude each other.")
    from sftcore.cli.quiet import quiet
    from sftcore.tools.saved import open_run

    quiet()
    saved = open_run(run, adapter=adapter, base=base, trust_remote_code=trust_remote_code)
    if saved.adapter is None and (compare or no_adapter):
        raise click.UsageError(f"{run} is a whole model: there is no adapter to switch off.")
    from sftcore.tools.chat_loop import Chat
    from sftcore.tools.chat_model import Sampling, load_speaker

    text = _from_stdin() if prompt == "-" else prompt
    sampling = Sampling(max_new_tokens, temperature, 1.0 if top_p is None else top_p, seed)
    speaker = load_speaker(saved, dtype=dtype)
    chat = Chat(speaker, sampling, system=system, adapter=not no_adapter, compare=compare)
    for note in saved.notes:
        chat.tell(f"note: {note}")
    if text is not None:
        chat.ask(text)
        return
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):  # Windows has none
            importlib.import_module("readline")  # gives input() a history and keys to edit with
        with_it = f" with its adapter on {saved.base.name}" if saved.adapter else ""
        chat.tell(
            f"{run}{with_it}, {speaker.model.dtype}. /help lists the commands, /exit leaves.".replace("torch.", "")
        )
    chat.run(lambda: input("> " if is_terminal else ""))


def _from_stdin() -> str:
    text = sys.stdin.read().strip()
    if not text:
        raise click.UsageError("--prompt - reads the prompt from stdin, and that is empty.")
    return text
