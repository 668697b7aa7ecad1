"""`sftcore list-plugins`: what is installed, from metadata; only `--details` imports plugins, each guarded."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import click
from attrs import frozen

from sftcore.core.discovery import Catalog, PluginEntry, discover
from sftcore.core.registry import Blocklist, by_itself
from sftcore.core.types import KINDS

SCHEMA = 1


@frozen
class Details:
    """What importing a plugin shows of it, or `error` where it is broken."""

    summary: str = ""
    options: tuple[dict[str, Any], ...] = ()
    hooks: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    error: str = ""


@click.command("list-plugins")
@click.option("--kind", type=click.Choice(KINDS), help="Only plugins of this kind.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema: docs/reference/list-plugins.md).")
@click.option(
    "--details", is_flag=True, help="Import each plugin and show options, hooks and slots. Runs third-party code."
)
@click.option("--block", multiple=True, metavar="KIND:NAME", help="Show this plugin as blocked.")
def command(kind: str | None, as_json: bool, details: bool, block: tuple[str, ...]) -> None:
    """Show what is installed, usable or missing, and why. Nothing is imported without --details."""
    catalog = discover()
    blocked = Blocklist.parse(block, where="--block")
    entries = catalog.of_kind(kind) if kind else catalog.entries
    if details:
        click.echo("--details imports every plugin listed: third-party code runs.", err=True)
    rows = [_row(entry, catalog, blocked, _details(entry) if details else None) for entry in entries]
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "plugins": rows}, indent=2, ensure_ascii=False))
    elif sys.stdout.isatty():
        _table(rows, details)
    else:
        _plain(rows, details)


def _row(entry: PluginEntry, catalog: Catalog, blocked: Blocklist, details: Details | None) -> dict[str, Any]:
    status, why = _status(entry, catalog, blocked)
    row = {
        "kind": entry.kind,
        "name": entry.name,
        "distribution": entry.distribution,
        "version": entry.version,
        "entry_point": entry.value,
        "status": status,
        "why": why,
    }
    if details is None:
        return row
    if details.error and status != "missing":
        row |= {"status": "broken", "why": details.error}
    return {
        **row,
        "summary": details.summary,
        "options": list(details.options),
        "hooks": list(details.hooks),
        "slots": list(details.slots),
    }


def _status(entry: PluginEntry, catalog: Catalog, blocked: Blocklist) -> tuple[str, str]:
    if blocked.blocks(entry):
        return "blocked", f"{entry.kind}:{entry.name}"
    if entry.missing:
        return "missing", f'needs {", ".join(entry.missing)}: pip install "{entry.distribution}[{entry.name}]"'
    named = [one for one in catalog.of_kind(entry.kind) if one.name == entry.name and not blocked.blocks(one)]
    others = [one for one in named if one != entry]
    if others:
        offers = ", ".join(one.distribution for one in others)
        return "ambiguous", f"also from {offers}: write {entry.name}@{entry.distribution}"
    return "usable", ""


def _details(entry: PluginEntry) -> Details:
    from sftcore.core.errors import SFTCoreError
    from sftcore.core.hookspecs import LIFECYCLE
    from sftcore.core.options import type_name
    from sftcore.core.plugin_class import options, summary

    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a module prints must not end up inside the JSON
            plugins = by_itself(entry)  # registering shows misspelled hooks and misfits too
            (one,) = plugins.bound
            hooks = tuple(hook for hook in LIFECYCLE if one.implements(hook))
            slots = tuple(slot for _, claimed in plugins.all("claims") for slot in claimed)
    except SFTCoreError as error:
        return Details(error=str(error))
    except Exception as error:  # a third party's code may raise anything; the list goes on
        return Details(error=f"{type(error).__name__}: {error}")
    listed = tuple(
        {
            "name": option.name,
            "type": _type_text(option.type, type_name),
            "default": _json_default(getattr(one.plugin, option.name)),
        }
        for option in options(type(one.plugin))
    )
    return Details(summary(type(one.plugin)), listed, hooks, slots)


def _type_text(wanted: Any, type_name: Any) -> str:
    return wanted if isinstance(wanted, str) else str(type_name(wanted))


def _json_default(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, list, dict)) or value is None else repr(value)


def _plain(rows: list[dict[str, Any]], details: bool) -> None:
    columns = ("kind", "name", "distribution", "version", "status", "why")
    table = [columns, *(tuple(str(row[column]) for column in columns) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line, row in zip(table, [None, *rows], strict=True):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if details and row:
            for text in _detail_lines(row):
                click.echo(f"    {text}")


def _table(rows: list[dict[str, Any]], details: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"usable": "green", "missing": "yellow", "ambiguous": "yellow", "blocked": "yellow", "broken": "red"}
    table = Table("kind", "name", "from", "status", "why" if not details else "details", box=None, header_style="bold")
    for row in rows:
        more = "\n".join(filter(None, [row["why"], *(_detail_lines(row) if details else [])]))
        table.add_row(
            row["kind"],
            Text(row["name"], style="bold"),
            f"{row['distribution']} {row['version']}",
            Text(row["status"], style=colours[row["status"]]),
            Text(more),
        )
    Console().print(table)


def _detail_lines(row: dict[str, Any]) -> list[str]:
    lines = [row["summary"]] if row["summary"] else []
    lines += [f"{option['name']}: {option['type']} = {option['default']!r}" for option in row["options"]]
    if row["hooks"]:
        lines.append(f"hooks: {', '.join(row['hooks'])}")
    if row["slots"]:
        lines.append(f"slots: {', '.join(row['slots'])}")
    return lines
