"""Keeps prepared data sets under a hash of everything they were made from, and explains hits and misses.

Nothing is looked up by name or time. The first process that asks for a key makes the entry while the others wait for a
file lock; then all map the same file. An entry is written to a temporary folder, and renamed when it is complete.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sftcore.data.columns import without_empty_weights
from sftcore.data.ledger import Ledger
from sftcore.util.disk import sync, writing

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_DATA, _FACTS = "data.arrow", "entry.json"
WRITE_FIX = "Free space, or set SFTCORE_CACHE (TMPDIR if dataset_cache is false) to a folder on another disk."


Key: TypeAlias = Mapping[str, str]
"""Everything a prepared set was made from, as named parts, each a short text or a digest."""


def cache_folder() -> Path:
    """`$SFTCORE_CACHE`, or else `sftcore` in the user's cache folder."""
    if given := os.environ.get("SFTCORE_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sftcore"


def find_or_make(
    key: Key, make: Callable[[Path], tuple[pa.Table, Ledger]], *, folder: Path | None = None
) -> tuple[Dataset, Ledger, str]:
    """The set with this key, its ledger, and a note that says whether it was made or found in the cache, and why.

    If it does not exist, `make` writes `data.arrow` (an Arrow stream) into the folder that it is given. With `folder`,
    the entry is there and not in the cache.
    """
    from filelock import FileLock

    folder = folder or cache_folder() / "prepared"
    with writing("prepared rows", folder, fix=WRITE_FIX):
        folder.mkdir(parents=True, exist_ok=True)
    name = digest_of(json.dumps(key, sort_keys=True).encode())[:32]
    entry = folder / name
    # No time-out: preparing a large set may take hours, and a process that dies releases its lock
    with FileLock(folder / f"{name}.lock"):
        if (found := _load(entry)) is not None:
            return *found, f"found in the cache, and nothing has changed since ({entry})"
        reason = _explain(folder, key)
        start = time.monotonic()
        for left in folder.glob(f"{name}-*"):  # left by a process that was killed; this one holds the lock
            shutil.rmtree(left, ignore_errors=True)
        with writing("prepared rows", folder, fix=WRITE_FIX):
            aside = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
        try:
            _, ledger = make(aside)
            facts = {"parts": key, "ledger": ledger.as_dict()}
            with writing("prepared rows", folder, fix=WRITE_FIX):
                (aside / _FACTS).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
                # otherwise a name could survive a power cut while its rows do not
                for written in (*aside.iterdir(), aside):
                    sync(written)
                shutil.rmtree(entry, ignore_errors=True)
                aside.rename(entry)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        found = _load(entry)
        assert found is not None
        return *found, f"prepared in {time.monotonic() - start:.1f} s, {reason}"


def wrapped(table: pa.Table) -> Dataset:
    """A data set from a table in memory."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    return Dataset(InMemoryTable(table))


def digest_of(*chunks: bytes) -> str:
    """The BLAKE2b hash of these bytes: 64 hexadecimal digits."""
    return hashlib.blake2b(b"".join(chunks), digest_size=32).hexdigest()


def _load(entry: Path) -> tuple[Dataset, Ledger] | None:
    """The entry's memory-mapped rows and its ledger, or None if it does not exist or cannot be read."""
    from datasets import Dataset

    try:
        ledger = Ledger.from_dict(json.loads((entry / _FACTS).read_text(encoding="utf-8"))["ledger"])
        dataset = Dataset.from_file(str(entry / _DATA))
    except (OSError, ValueError, KeyError, TypeError):  # pyarrow's errors are OSError and ValueError
        return None
    expected = ledger.packing.blocks if ledger.packing else ledger.rows_kept
    if len(dataset) != expected:
        return None
    return dataset.select_columns(without_empty_weights(dataset.data.table).column_names), ledger


def _explain(folder: Path, key: Key) -> str:
    """Which parts of the key differ from the most similar entry, or from the newest of several."""
    known = []
    for facts in folder.glob(f"*/{_FACTS}"):
        try:
            parts = json.loads(facts.read_text(encoding="utf-8"))["parts"]
        except (OSError, ValueError, KeyError):
            continue
        differ = [name for name, value in key.items() if parts.get(name) != value]
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
