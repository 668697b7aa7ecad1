"""`sftcore cache`: list the prepared data sets that are kept, and remove them."""

from __future__ import annotations

import json
import time

import click

from sftcore.core.visible import visible


@click.group("cache")
def command() -> None:
    """List and remove prepared data sets, which are kept in $SFTCORE_CACHE so that they are prepared once."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def show(as_json: bool) -> None:
    """List the prepared sets, the one used last first: size, last use, rows, tokens, and what they were made from."""
    from sftcore.data.store.prune import kept, prepared_folder

    folder = prepared_folder()
    there = kept(folder)
    if as_json:
        entries = [
            {"path": str(one.path), "bytes": one.size, "used": one.used, "name": one.name, "rows": one.rows,
             "tokens": one.tokens, "made_from": one.made_from}
            for one in there
        ]  # fmt: skip
        click.echo(json.dumps({"schema": 1, "folder": str(folder), "entries": entries}, indent=2))
        return
    for one in there:
        what = f"{one.name}, {one.rows:,} rows, {one.tokens:,} tokens" if one.made_from else "its facts are damaged"
        length = one.made_from.get("max_length", "")
        how = ", ".join(filter(None, [length and f"max_length {length}", one.made_from.get("packing", "")]))
        line = f"{one.path.name}  {_sized(one.size):>9}  used {_ago(one.used):<12}  {what}{f' ({how})' if how else ''}"
        click.echo(visible(line))
    click.echo(visible(f"{len(there)} prepared sets, {_sized(sum(one.size for one in there))}, in {folder}"))


@command.command("prune")
@click.option(
    "--limit", metavar="SIZE", help='Keep this much, such as "10 GiB". Default: $SFTCORE_CACHE_LIMIT or 50 GiB.'
)
@click.option(
    "--unused-for", metavar="DAYS", type=click.FloatRange(min=0), help="Remove all sets not used for so long."
)
@click.option("--all", "everything", is_flag=True, help="Remove every set that no process has open.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
def remove(limit: str | None, unused_for: float | None, everything: bool, dry_run: bool) -> None:
    """Remove prepared sets, the one whose last use is longest ago first; a set that a process has open stays."""
    from sftcore.data.store.prune import limit_of, prepared_folder, prune

    if sum([everything, limit is not None]) > 1:
        raise click.UsageError("--all and --limit exclude each other.")
    size = 0 if everything or (unused_for is not None and limit is None) else limit_of(limit) if limit else None
    age = 86400 * (unused_for or 0.0)
    removed = prune(prepared_folder(), limit=size, unused_for=age, dry_run=dry_run)
    for one in removed:
        click.echo(visible(f"{one.path.name}  {_sized(one.size):>9}  used {_ago(one.used)}"))
    verb = "would be removed" if dry_run else "removed"
    click.echo(f"{len(removed)} prepared sets {verb}, {_sized(sum(one.size for one in removed))}")


def _sized(size: int) -> str:
    number, units = float(size), iter(("B", "KiB", "MiB", "GiB"))
    unit = next(units)
    while number >= 1024 and (larger := next(units, "")):
        number, unit = number / 1024, larger
    return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"


def _ago(when: float) -> str:
    minutes = max(0, int((time.time() - when) / 60))
    if minutes < 60:
        return f"{minutes} min ago"
    return f"{minutes // 60} h ago" if minutes < 48 * 60 else f"{minutes // (24 * 60)} days ago"
