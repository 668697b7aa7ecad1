"""The command line: one module per verb, imported only when that verb is called."""

from __future__ import annotations

import contextlib
import functools
import importlib
import keyword
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from sftcore.core.visible import unstyled, visible

_TRACEBACK = "sftcore.traceback"
_VERBS = {
    "quickstart": "Fine-tune a small model on your machine and compare its answers before and after.",
    "train": "Train a model from a recipe file, from settings on the command line, or both.",
    "import": "Turn a configuration of TRL, Axolotl, LLaMA-Factory, Unsloth, ms-swift or torchtune into a recipe.",
    "sft": "Train a model with the arguments of `trl sft`.",
    "check": "Check a whole data set without training: report what a run would keep, cut and refuse.",
    "preview": "Show a row as the model will see it, with the supervised tokens marked.",
    "list-plugins": "List the installed plugins, and say why any of them cannot be used.",
    "explain": "Show every value of a run with where it comes from, and which plugin answers each hook.",
    "selftest": "Verify that a run computes the same loss and gradients as plain transformers.",
    "parity": "Check that a saved model will be served with the template and tokens it was trained with.",
    "replay": "Repeat a run from its manifest and compare the weights bit by bit.",
    "report": "Make the page of a run anew, or one that compares several runs.",
    "evaluate": "Evaluate a trained model: loss, perplexity and accuracy on rows of your choice.",
    "rows": "Show the rows of a run that hurt: whose loss stays high, or that were cut, dropped or doubled.",
    "merge": "Merge a run's adapter into its base model, so that it loads without PEFT.",
    "chat": "Chat with a trained model in the terminal, with or without its adapter.",
    "quantize": "Quantise a trained model, calibrated on its own training rows, and measure the effect.",
    "doctor": "Look for what is wrong with this machine and, of a recipe, with what its run needs.",
    "estimate": "Say how much memory a run takes, and how many steps and tokens it is, without its weights.",
    "cache": "List and remove the prepared data sets that are kept.",
    "schema": "Print the JSON schema of recipes, for completion and checks in editors.",
    "new-plugin": "Write a complete distribution for a plugin of your own, with tests.",
    "plugin": "Test plugins as their author: sftcore plugin test PATH|NAME.",
}
_SEEING = (
    click.Option(["--traceback"], is_flag=True, expose_value=False, callback=lambda ctx, _, on: _see(ctx, "", on),
                 help="Show where in the code an error was raised."),
    click.Option(["--trace-plugins"], is_flag=True, expose_value=False,
                 callback=lambda ctx, _, on: _see(ctx, "SFTCORE_TRACE_PLUGINS", on),
                 help="Print each call of a plugin's hook: who answered, and how long it took."),
)  # fmt: skip
"""Options that every verb has, to see plugins at work."""
_FOLDERS = {
    **dict.fromkeys(("parity", "replay", "report", "evaluate", "rows", "merge", "chat", "quantize"), "after"),
    **dict.fromkeys(("new-plugin", "plugin"), "authors"),
    **dict.fromkeys(("cache", "doctor", "estimate", "schema"), "machine"),
    "import": "bring",
}
"""The folders of verbs that are not beside this file: for a trained run, for authors of plugins, about this machine,
for who comes from another tool."""


class _LazyGroup(click.Group):
    """A group that imports a command only when it is called, so that `--help` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        verbs = [CompletionItem(verb, help=text) for verb, text in _VERBS.items() if verb.startswith(incomplete)]
        return verbs or click.Command.shell_complete(self, ctx, incomplete)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            if ctx.resilient_parsing:  # a shell asks what may follow
                return None
            from sftcore.core.errors import nearest

            ctx.fail(f'There is no verb "{cmd_name}".{nearest(cmd_name, _VERBS)}')
        module = f"{cmd_name.replace('-', '_')}{'_' if keyword.iskeyword(cmd_name) else ''}"
        parts = ["sftcore.cli", _FOLDERS.get(cmd_name, ""), module]
        command: click.Command = importlib.import_module(".".join(filter(None, parts))).command
        command.params += [one for one in _SEEING if one not in command.params]
        return command

    def invoke(self, ctx: click.Context) -> Any:
        from sftcore.core.errors import SFTCoreError
        from sftcore.util.disk import names_of_files

        try:
            with names_of_files():
                return super().invoke(ctx)
        except SFTCoreError:
            if ctx.meta.get(_TRACEBACK):
                click.echo(visible(traceback.format_exc()), err=True)
            raise
        except click.UsageError as error:  # it quotes words that may be file names which the shell expanded
            advice = _as_setting(error) if isinstance(error, click.NoSuchOption) else ""
            raise click.UsageError(visible(advice or error.format_message()), error.ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))


def _see(ctx: click.Context, variable: str, on: bool) -> None:
    """Turn on what an option of `_SEEING` asks for; a variable of the environment reaches other processes too."""
    if on and variable:
        os.environ[variable] = "1"
        ctx.call_on_close(lambda: os.environ.pop(variable, None))
    elif on:
        ctx.meta[_TRACEBACK] = True


def _as_setting(error: click.NoSuchOption) -> str:
    """What to write instead of an option that is a setting of the recipe; empty if it is none."""
    if error.ctx is None or not any(one.name == "words" for one in error.ctx.command.params):
        return ""
    from sftcore.config.fields import config_fields
    from sftcore.config.foreign.table import lookup
    from sftcore.config.near_names import offer
    from sftcore.config.recipe import SECTIONS

    key = error.option_name.lstrip("-").replace("-", "_")
    if key in ("run", "model", "data") and any(one.name == "run" for one in error.ctx.command.params):
        return f"RUN and DATA are given without an option: sftcore {error.ctx.command.name} RUN DATA"
    if long := {"m": "model", "d": "data"}.get(key):
        return f"There is no option {error.option_name}. Write --{long}"
    if key in ("config", "recipe", "c"):
        return f"The recipe is given without an option: sftcore {error.ctx.command.name} recipe.yaml"
    known = {*SECTIONS, *config_fields()}
    if key in known:
        return f"There is no option {error.option_name}. Settings are written key=value: {key}=…"
    found = offer(key, known)
    if error.possibilities and lookup(key) is None:  # an option of the verb itself is nearer
        return ""
    if not found.key:
        return f"There is no option {error.option_name}. {found.note}" if found.note else ""
    said = f" {found.note}" if found.note else ""
    return f"There is no option {error.option_name}. Settings are written key=value: {found.key}=…{said}"


class _EscapedLogRecord(logging.LogRecord):
    """Log messages without colours or control characters, since libraries may quote a model's or tokenizer's files."""

    def getMessage(self) -> str:
        return visible(unstyled(super().getMessage()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sftcore")
def cli() -> None:
    """Supervised fine-tuning of language models."""


def main() -> None:
    """Run the command line; an error of our own is shown as one message, and the exit code is 1.

    Of several processes the first one that fails shows its error. What the others end with follows from that.
    """
    from sftcore.core.errors import SFTCoreError
    from sftcore.util.launched import claim, end_with_launcher, is_launched

    end_with_launcher()
    if is_launched():
        from sftcore.util.words import bring_back

        bring_back()
    with _plain_reports():
        try:
            cli(prog_name="sftcore")
        except SFTCoreError as error:
            if claim(f"error: {error}"):
                click.echo(f"error: {error}", err=True)
            sys.exit(1)
        except Exception as error:
            if claim(f"{type(error).__name__}: {error}"):
                raise
            sys.exit(1)


@contextlib.contextmanager
def _plain_reports() -> Iterator[None]:
    """Warnings and what libraries log without control characters, as they were afterwards."""

    @functools.cache
    def show_once(text: str) -> None:  # a run is checked twice, from the recipe and in the trainer
        click.echo(f"warning: {text}", err=True)

    before = warnings.showwarning, logging.getLogRecordFactory()
    warnings.showwarning = lambda message, *_, **__: show_once(visible(" ".join(unstyled(str(message)).split())))
    logging.setLogRecordFactory(_EscapedLogRecord)
    try:
        yield
    finally:
        warnings.showwarning = before[0]
        logging.setLogRecordFactory(before[1])
