"""The checksum file of a checkpoint: the last thing written into it, and the first thing read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sftcore.util.disk import sync

SEAL = "checksums.json"
SCHEMA = 1
_CHUNK = 1 << 22


def seal(folder: Path) -> None:
    """Write all of `folder` to the disk, and then the checksums of its files, `SEAL`, on which all else is judged.

    Raises:
        OSError: what the disk said.
    """
    files = _files(folder)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        entries = dict(zip(files, pool.map(lambda name: _entry(folder / name, sync=True), files), strict=True))
    for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync(inner)
    with (folder / SEAL).open("w", encoding="utf-8") as file:
        file.write(_spelled(entries))
        file.flush()
        os.fsync(file.fileno())
    sync(folder)


def is_sealed(folder: Path) -> bool:
    """Whether the folder has a checksum file."""
    return (folder / SEAL).is_file()


def fault(folder: Path) -> str | None:
    """What is wrong with a sealed folder, with the file's name; None where every file is as it was written.

    Files that the checksum file does not name are not judged: callbacks may add some after a save.
    """
    entries = _read(folder / SEAL)
    if entries is None:
        return f"{SEAL} is damaged"
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry["size"]:
            return f"{name} has {size:,} bytes, and {entry['size']:,} were written"
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for name, found in zip(entries, pool.map(lambda name: _entry(folder / name), entries), strict=True):
                if found != entries[name]:
                    return f"{name} is not what was written: its sha256 differs"
        except OSError as error:
            return f"{error.filename or 'a file'} cannot be read: {error.strerror}"
    return None


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _entry(path: Path, *, sync: bool = False) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


def _spelled(entries: Mapping[str, Mapping[str, Any]]) -> str:
    own = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    return json.dumps({"schema": SCHEMA, "files": entries, "files_sha256": own}, indent=1) + "\n"


def _read(path: Path) -> dict[str, dict[str, Any]] | None:
    try:
        text = path.read_bytes().decode()
        entries: dict[str, dict[str, Any]] = json.loads(text)["files"]
        shaped = all(set(entry) == {"size", "sha256"} for entry in entries.values())
        # A damaged file may still be JSON; spelled anew it would differ
        return entries if shaped and _spelled(entries) == text else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
