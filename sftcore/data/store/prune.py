"""Where prepared rows are kept, what is there, and how it is kept from growing without end."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from sftcore.core.errors import RecipeError
from sftcore.data.store.entry import USED, facts_of, unused
from sftcore.util.disk import cache_folder

DEFAULT_LIMIT = "50 GiB"
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def prepared_folder() -> Path:
    """The folder of the prepared sets, one folder each."""
    return cache_folder() / "prepared"


@frozen
class Kept:
    """A prepared set in the cache: its size in bytes, when it was last used (seconds since 1970), what it was made of.

    Its facts are empty where they cannot be read.
    """

    path: Path
    size: int
    used: float
    made_from: dict[str, str]
    name: str = ""
    rows: int = 0
    tokens: int = 0


def kept(folder: Path) -> list[Kept]:
    """The prepared sets in this folder, the one that was used last first."""
    return sorted(_kept(folder), key=lambda one: -one.used)


def prune(
    folder: Path,
    *,
    limit: int | None = None,
    unused_for: float = 0.0,
    keep: Path | None = None,
    dry_run: bool = False,
) -> list[Kept]:
    """Remove the sets whose last use is longest ago until the rest is not larger than `limit`, and return them.

    Args:
        limit: bytes; the default is `$SFTCORE_CACHE_LIMIT`, or 50 GiB.
        unused_for: seconds; a set that was used since then stays.
        keep: a set that stays. One that a process has mapped stays as well.
        dry_run: nothing is removed.

    Raises:
        RecipeError: `$SFTCORE_CACHE_LIMIT` is not a size.
    """
    limit = default_limit() if limit is None else limit
    there = kept(folder)
    total, removed = sum(one.size for one in there), []
    for one in reversed(there):
        if total <= limit:
            break
        if one.path != keep and time.time() - one.used >= unused_for and _remove(one.path, dry_run):
            total -= one.size
            removed.append(one)
    return removed


def default_limit() -> int:
    """`$SFTCORE_CACHE_LIMIT`, or 50 GiB, in bytes.

    Raises:
        RecipeError: it is not a size.
    """
    return limit_of(os.environ.get("SFTCORE_CACHE_LIMIT") or DEFAULT_LIMIT)


def limit_of(text: str, *, where: str = "the limit of the cache") -> int:
    """A number of bytes, spelled as `50 GiB`, `500M` or `0`.

    >>> limit_of("1.5 KiB"), limit_of("2G"), limit_of("none") > 2**60
    (1536, 2147483648, True)

    Raises:
        RecipeError: it is not one.
    """
    if text.strip().lower() == "none":
        return 2**63
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text, re.IGNORECASE)
    if found is None:
        raise RecipeError(f'"{text}" is not a size.', where=where, fix='Write one such as "50 GiB", or "none".')
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _kept(folder: Path) -> Iterator[Kept]:
    for path in folder.glob("*"):
        if "-" in path.name or not path.is_dir():  # one that is being written
            continue
        try:
            size = sum(file.stat().st_size for file in path.iterdir())
            used = (path / USED if (path / USED).exists() else path).stat().st_mtime
        except OSError:  # removed since
            continue
        if (facts := facts_of(path)) is None:
            yield Kept(path, size, used, {})
        else:
            ledger = facts["ledger"]
            yield Kept(path, size, used, facts["parts"], ledger["name"], ledger["rows_kept"], ledger["tokens_kept"])


def _remove(path: Path, dry_run: bool) -> bool:
    with unused(path) as free:
        if free and not dry_run:
            shutil.rmtree(path, ignore_errors=True)
        return free and (dry_run or not path.exists())
