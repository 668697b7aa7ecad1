"""The command line: one module a verb, imported only when that verb is called."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from typing import Any

import click

from sftcore.core.visible import visible

_VERBS = {
    "quickstart": ("quickstart", "Fine-tune a small model on your machine and see it change."),
    "train": ("train", "Train what a recipe says."),
    "check": ("check", "Report on a whole data set: what a run would make of it, and what is odd."),
    "preview": ("preview", "Show a row as the model will see it, with what is supervised."),
    "list-plugins": ("list_plugins", "Show what is installed, usable or missing, and why."),
    "explain": ("explain", "Show which plugin answers each hook of a run."),
    "selftest": ("selftest", "Show that a run computes what plain transformers computes."),
    "parity": ("parity", "Check that a saved folder is served with what it was trained with."),
    "replay": ("replay", "Do a run again from its manifest, and compare the weights bit by bit."),
    "merge": ("merge", "Put a run's adapter into its base: a model that needs no PEFT."),
    "chat": ("chat", "Talk to a run in the terminal, with its adapter and without."),
    "quantize": ("quantize", "Make a run's model small, calibrated on its own rows, and measure it."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called: `--help` imports nothing heavy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"sftcore.cli.{_VERBS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in _VERBS:
            from sftcore.core.errors import nearest

            ctx.fail(f'no verb named "{name}".{nearest(name, _VERBS)}')
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:  # it quotes words, which a shell may have made of names of files
            raise click.UsageError(visible(error.format_message()), error.ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in _VERBS.items()])


class _WarnOnce:
    """Shows a warning as one line, once: a run is checked twice, from the recipe and in the trainer."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def __call__(self, message: Warning | str, *_: object, **__: object) -> None:
        text = visible(str(message))
        if text not in self._shown:
            self._shown.add(text)
            click.echo(f"warning: {text}", err=True)


class _Record(logging.LogRecord):
    """What other libraries log may quote a model's or a tokenizer's files."""

    def getMessage(self) -> str:
        return visible(super().getMessage())


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sftcore")
def cli() -> None:
    """Supervised fine-tuning of language models."""


def main() -> None:
    """Run the command line; our own errors are shown as one message, exit code 1."""
    from sftcore.core.errors import SFTCoreError

    warnings.showwarning = _WarnOnce()
    logging.setLogRecordFactory(_Record)
    try:
        cli(prog_name="sftcore")
    except SFTCoreError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
