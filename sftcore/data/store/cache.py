"""Keeps prepared data sets under a hash of everything they were made from, and explains hits and misses.

Nothing is looked up by name or time. The first process that asks for a key makes the entry while the others wait for a
file lock; then all map the same file. An entry is written to a temporary folder, and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import xxhash

from sftcore.core.errors import WriteError
from sftcore.data.account.outcomes import Outcomes
from sftcore.data.ledger import Ledger
from sftcore.data.store.entry import FACTS, DamagedEntry, complete, facts_of, mapped, release
from sftcore.data.store.prune import default_limit, prepared_folder, prune
from sftcore.util.disk import writing
from sftcore.util.warned import warn

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

OTHERWISE = "or set SFTCORE_CACHE (TMPDIR if dataset_cache is false) to a folder on another disk"


Key: TypeAlias = Mapping[str, str]
"""Everything a prepared set was made from, as named parts, each a short text or a digest."""


def find_or_make(
    key: Key, make: Callable[[Path], tuple[pa.Table, Ledger]], *, folder: Path | None = None
) -> tuple[Dataset, Ledger, str]:
    """The set with this key, its ledger, and a note that says whether it was made or found in the cache, and why.

    If it does not exist or is damaged, `make` writes `data.arrow` (an Arrow stream) into the folder that it is given.
    With `folder`, the entry is there and not in the cache.

    Raises:
        WriteError: the set does not exist, and cannot be written.
        RecipeError: the limit of the cache is not a size.
    """
    from filelock import FileLock

    limit = default_limit()
    bounded, folder = folder is None, folder or prepared_folder()
    name = digest_of(json.dumps(key, sort_keys=True).encode())[:32]
    entry = folder / name
    with contextlib.suppress(DamagedEntry):  # before the lock, which needs a folder that can be written to
        if (found := mapped(entry, key)) is not None:
            return *found, _found(entry)
    with contextlib.ExitStack() as stack:
        with writing("prepared rows", folder, otherwise=OTHERWISE):
            folder.mkdir(parents=True, exist_ok=True)
            # No time-out: preparing a large set may take hours, and a process that dies releases its lock
            stack.enter_context(FileLock(folder / f"{name}.lock"))
        try:
            if (found := mapped(entry, key)) is not None:
                return *found, _found(entry)
            reason = _explain(folder, key)
        except DamagedEntry as damage:
            warn(f"the cache is damaged: {damage}; the rows are prepared anew")
            reason = f"because what the cache held is damaged: {damage}"
        start = time.monotonic()
        _make(key, make, folder, entry)
        found = _just_made(entry, key)
        if bounded:
            prune(folder, limit=limit, keep=entry)
        return *found, f"prepared in {time.monotonic() - start:.1f} s, {reason}"


def _found(entry: Path) -> str:
    return f"found in the cache, and nothing has changed since ({entry})"


def _just_made(entry: Path, key: Key) -> tuple[Dataset, Ledger]:
    """The entry that was written a moment ago.

    Raises:
        WriteError: the disk does not hold what was written.
    """
    try:
        if (found := mapped(entry, key)) is not None:
            return found
        what = f"{entry} was removed as soon as it was written"
    except DamagedEntry as damage:
        what = str(damage)
    fix = f"Look for a fault of the disk in the system's log, {OTHERWISE}."
    raise WriteError(f"prepared rows cannot be kept: {what}.", where=str(entry.parent), fix=fix)


def _make(key: Key, make: Callable[[Path], tuple[pa.Table, Ledger]], folder: Path, entry: Path) -> None:
    """Write the entry beside its place, and put it there when it is complete; the caller holds its lock."""
    for left in folder.glob(f"{entry.name}-*"):  # left by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with writing("prepared rows", folder, otherwise=OTHERWISE):
        aside = folder / f"{entry.name}-{uuid.uuid4().hex[:8]}"  # not by mkdtemp, whose folders nobody else can read
        aside.mkdir()
    try:
        _, ledger = make(aside)
        with writing("prepared rows", folder, otherwise=OTHERWISE):
            complete(aside, {"parts": key, "ledger": ledger.as_dict()}, ledger.outcomes or Outcomes())
            release(entry)
            shutil.rmtree(entry, ignore_errors=True)
            aside.rename(entry)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def wrapped(table: pa.Table) -> Dataset:
    """A data set from a table in memory."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    return Dataset(InMemoryTable(table), fingerprint=_fingerprint(table))


def _fingerprint(table: pa.Table) -> str:
    """16 hexadecimal digits that depend on the rows; `datasets` would pickle each of their buffers for it."""
    found = xxhash.xxh3_64(str(table.schema).encode())
    for column in table.columns:
        for chunk in column.chunks:
            found.update(f"{len(chunk)} {chunk.offset}".encode())
            for buffer in chunk.buffers():
                found.update(b"" if buffer is None else memoryview(buffer))
    return found.hexdigest()


def digest_of(*chunks: bytes) -> str:
    """The BLAKE2b hash of these bytes: 64 hexadecimal digits."""
    return hashlib.blake2b(b"".join(chunks), digest_size=32).hexdigest()


def _explain(folder: Path, key: Key) -> str:
    """Which parts of the key differ from the most similar entry, or from the newest of several."""
    known = []
    for facts in folder.glob(f"*/{FACTS}"):
        if (found := facts_of(facts.parent)) is None:
            continue
        differ = [name for name, value in key.items() if found["parts"].get(name) != value]
        with contextlib.suppress(FileNotFoundError):  # removed since
            known.append((len(differ), -facts.stat().st_mtime, differ))
    if not known:
        return "for the first time"
    differ = min(known)[2]
    return f"because this differs from what is in the cache: {', '.join(differ)}"


def source_digest(module_file: str) -> str:
    """Digest of a module's source, or if it is in a package, of the path and bytes of every .py file in the package."""
    path = Path(module_file)
    top = path
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    files = sorted(top.rglob("*.py")) if top.is_dir() else [top]
    stamped = tuple((file, (status := file.stat()).st_mtime_ns, status.st_size) for file in files)
    return _digest_of_files(top.parent, stamped)


@functools.lru_cache(maxsize=64)
def _digest_of_files(base: Path, stamped: tuple[tuple[Path, int, int], ...]) -> str:
    """The stamps, times and sizes of the files, only say when to read them again: a run asks for several digests."""
    chunks: list[Any] = []
    for file, _, _ in stamped:
        chunks += [str(file.relative_to(base)).encode(), file.read_bytes()]
    return digest_of(*chunks)
