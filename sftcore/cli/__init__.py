"""The command line: one module per verb, imported only when that verb is called."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from typing import Any

import click

from sftcore.core.visible import visible

_VERBS = {
    "quickstart": ("quickstart", "Fine-tune a small model on your machine and compare its answers before and after."),
    "train": ("train", "Train a model from a recipe file, from settings on the command line, or both."),
    "check": ("check", "Check a whole data set without training: report what a run would keep, cut and refuse."),
    "preview": ("preview", "Show a row as the model will see it, with the supervised tokens marked."),
    "list-plugins": ("list_plugins", "List the installed plugins, and say why any of them cannot be used."),
    "explain": ("explain", "Show which plugin answers each hook of a run."),
    "selftest": ("selftest", "Verify that a run computes the same loss and gradients as plain transformers."),
    "parity": ("parity", "Check that a saved model will be served with the template and tokens it was trained with."),
    "replay": ("replay", "Repeat a run from its manifest and compare the weights bit by bit."),
    "merge": ("merge", "Merge a run's adapter into its base model, so that it loads without PEFT."),
    "chat": ("chat", "Chat with a trained model in the terminal, with or without its adapter."),
    "quantize": ("quantize", "Quantise a trained model, calibrated on its own training rows, and measure the effect."),
}


class _LazyGroup(click.Group):
    """A group that imports a command only when it is called, so that `--help` stays fast."""

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

            ctx.fail(f'There is no verb "{name}".{nearest(name, _VERBS)}')
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:  # it quotes words that may be file names which the shell expanded
            raise click.UsageError(visible(error.format_message()), error.ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in _VERBS.items()])


class _WarnOnce:
    """Shows each warning once, on one line: a run is checked twice, from the recipe and in the trainer."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def __call__(self, message: Warning | str, *_: object, **__: object) -> None:
        text = visible(str(message))
        if text not in self._shown:
            self._shown.add(text)
            click.echo(f"warning: {text}", err=True)


class _EscapedLogRecord(logging.LogRecord):
    """Escapes control characters in log messages, since libraries may quote a model's or a tokenizer's files."""

    def getMessage(self) -> str:
        return visible(super().getMessage())


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sftcore")
def cli() -> None:
    """Supervised fine-tuning of language models."""


def main() -> None:
    """Run the command line; an error of our own is shown as one message, and the exit code is 1."""
    from sftcore.core.errors import SFTCoreError

    warnings.showwarning = _WarnOnce()
    logging.setLogRecordFactory(_EscapedLogRecord)
    try:
        cli(prog_name="sftcore")
    except SFTCoreError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
