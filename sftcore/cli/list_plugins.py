"""`sftcore list-plugins`: what is installed, from metadata; only `--details` imports plugins, each guarded."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import attrs
import click

from sftcore.config.plugins.blocked import Blocklist
from sftcore.config.plugins.bound import by_itself
from sftcore.config.plugins.unread_groups import UnreadGroups
from sftcore.core.discovery import Catalog, PluginEntry, discover
from sftcore.core.types import KINDS
from sftcore.core.visible import visible

SCHEMA = 1
_COLUMNS = ("kind", "name", "distribution", "version", "status", "why")
_COLOURS = {"usable": "green", "missing": "yellow", "ambiguous": "yellow", "blocked": "yellow", "broken": "red"}


@click.command("list-plugins")
@click.option("--kind", type=click.Choice(KINDS), help="Only plugins of this kind.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema: docs/reference/list-plugins.md).")
@click.option(
    "--details", is_flag=True, help="Import each plugin and show options, hooks and slots. Runs third-party code."
)
@click.option("--block", multiple=True, metavar="KIND:NAME", help="Show this plugin as blocked.")
def command(kind: str | None, as_json: bool, details: bool, block: tuple[str, ...]) -> None:
    """Show what is installed, usable or missing, and why. Nothing is imported without --details."""
    unread = UnreadGroups()
    catalog = discover(also=unread)
    blocked = Blocklist.parse(block, where="--block")
    entries = catalog.of_kind(kind) if kind else catalog.entries
    if details:
        click.echo("--details imports every plugin listed: third-party code runs.", err=True)
    rows = [_row(entry, catalog, blocked, details) for entry in entries]
    if as_json:
        groups = [attrs.asdict(one) for one in unread]
        shown = {"schema": SCHEMA, "plugins": rows, "unread_groups": groups}
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        _show(rows)
    for one in unread:
        click.echo(f"warning: {visible(str(one))}", err=True)


def _row(entry: PluginEntry, catalog: Catalog, blocked: Blocklist, details: bool) -> dict[str, Any]:
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
    if not details:
        return row
    found, error = _details(entry)
    if error and status != "missing":
        row |= {"status": "broken", "why": error}
    return row | found


def _status(entry: PluginEntry, catalog: Catalog, blocked: Blocklist) -> tuple[str, str]:
    if blocked.blocks(entry):
        return "blocked", f"{entry.kind}:{entry.name}"
    if entry.missing:
        return "missing", f'needs {", ".join(entry.missing)}: pip install "{entry.distribution}[{entry.name}]"'
    named = [one for one in catalog.of_kind(entry.kind) if one.name == entry.name and not blocked.blocks(one)]
    others = [one for one in named if one != entry]
    if others:
        offers = ", ".join(one.distribution for one in others)
        if entry.is_own:  # which the name alone stands for
            return "usable", f"also from {offers}: write {entry.name}@{others[0].distribution} for that"
        return "ambiguous", f"also from {offers}: write {entry.name}@{entry.distribution}"
    return "usable", ""


def _details(entry: PluginEntry) -> tuple[dict[str, Any], str]:
    """What importing a plugin shows of it, and why it is broken, or an empty text."""
    from sftcore.core.errors import SFTCoreError, said_by
    from sftcore.core.hookspecs import LIFECYCLE
    from sftcore.core.options import type_name
    from sftcore.core.plugin_class import options, summary

    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a module prints must not end up inside the JSON
            plugins = by_itself(entry)  # registering shows misspelled hooks and misfits too
            (one,) = plugins.bound
            hooks = [hook for hook in LIFECYCLE if one.implements(hook)]
            slots = [slot for _, claimed in plugins.all("claims") for slot in claimed]
    except Exception as error:  # a third party's code may raise anything; the list goes on
        reason = str(error) if isinstance(error, SFTCoreError) else said_by(error)
        return {"summary": "", "options": [], "hooks": [], "slots": []}, reason
    listed = [
        {
            "name": option.name,
            "type": option.type if isinstance(option.type, str) else type_name(option.type),
            "default": _json_default(getattr(one.plugin, option.name)),
        }
        for option in options(type(one.plugin))
    ]
    return {"summary": summary(type(one.plugin)), "options": listed, "hooks": hooks, "slots": slots}, ""


def _json_default(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, list, dict)) or value is None else repr(value)


def _show(rows: list[dict[str, Any]]) -> None:
    table = [_COLUMNS, *(tuple(str(row[column]) for column in _COLUMNS) for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    for line, row in zip(table, [{}, *rows], strict=True):
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        if row:
            cells[4] = cells[4].replace(row["status"], click.style(row["status"], _COLOURS[row["status"]]))
        click.echo("  ".join(cells).rstrip())
        for text in _detail_lines(row):
            click.echo(f"    {text}")


def _detail_lines(row: dict[str, Any]) -> Iterator[str]:
    if row.get("summary"):
        yield row["summary"]
    for option in row.get("options", ()):
        yield f"{option['name']}: {option['type']} = {option['default']!r}"
    for key in ("hooks", "slots"):
        if row.get(key):
            yield f"{key}: {', '.join(row[key])}"
