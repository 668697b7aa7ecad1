"""Checksums of the files of a folder, and the text that records them, which says itself whether it is damaged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

_CHUNK = 1 << 22

Hash: TypeAlias = Callable[[], Any]
"""Makes an object such as `hashlib.sha256()`, with `name`, `update` and `hexdigest`."""
Entries: TypeAlias = dict[str, dict[str, Any]]
"""The size in bytes of each file, and its hash under the hash's name."""


def checksums_of(folder: Path, names: Iterable[str], hash: Hash = hashlib.sha256, *, flush: bool = False) -> Entries:
    """The entries of these files of `folder`; with `flush`, each is on the disk before it is read.

    Raises:
        OSError: what the disk said.
    """
    names = list(names)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda name: _entry(folder / name, hash, flush), names)
        return dict(zip(names, found, strict=True))


def differing(folder: Path, entries: Entries, hash: Hash = hashlib.sha256) -> tuple[str, str] | None:
    """The first of these files that is not as it was written, and what is wrong with it; None if all are."""
    return next(iter(differences(folder, entries, hash).items()), None)


def differences(folder: Path, entries: Entries, hash: Hash = hashlib.sha256) -> dict[str, str]:
    """Each of these files that is not as it was written, and what is wrong with it."""
    found = {name: said for name, entry in entries.items() if (said := _of_another_size(folder / name, entry))}
    same_size = [name for name in entries if name not in found]

    def judged(name: str) -> str:
        try:
            same = _entry(folder / name, hash, False) == entries[name]
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return "" if same else f"is not what was written: its {_name(hash)} differs"

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return found | {name: said for name, said in zip(same_size, pool.map(judged, same_size), strict=True) if said}


def _of_another_size(path: Path, entry: Mapping[str, Any]) -> str:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    return "" if size == entry["size"] else f"has {size:,} bytes, and {entry['size']:,} were written"


def spelled(entries: Mapping[str, Mapping[str, Any]], schema: int) -> str:
    """The text that records the entries, with a checksum of itself."""
    own = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    return json.dumps({"schema": schema, "files": entries, "files_sha256": own}, indent=1) + "\n"


def recorded(path: Path, schema: int, hash: Hash = hashlib.sha256) -> Entries | None:
    """The entries that a file records, or None if it is missing or damaged."""
    try:
        text = path.read_bytes().decode()
        entries: Entries = json.loads(text)["files"]
        shaped = all(set(entry) == {"size", _name(hash)} for entry in entries.values())
        # A damaged file may still be JSON; spelled anew it would differ
        return entries if shaped and spelled(entries, schema) == text else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _entry(path: Path, hash: Hash, flush: bool) -> dict[str, Any]:
    digest, size = hash(), 0
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"size": size, _name(hash): digest.hexdigest()}


def _name(hash: Hash) -> str:
    return str(hash().name).lower()
