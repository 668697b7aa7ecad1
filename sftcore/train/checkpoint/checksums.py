"""The checksum file of a checkpoint: the last thing written into it, and the first thing read."""

from __future__ import annotations

import os
from pathlib import Path

from sftcore.util.checksums import checksums_of, differing, recorded, spelled
from sftcore.util.disk import sync

SEAL = "checksums.json"
SCHEMA = 1


def seal(folder: Path) -> None:
    """Write all of `folder` to the disk, and then the checksums of its files, `SEAL`, on which all else is judged.

    Raises:
        OSError: what the disk said.
    """
    entries = checksums_of(folder, _files(folder), flush=True)
    for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync(inner)
    with (folder / SEAL).open("w", encoding="utf-8") as file:
        file.write(spelled(entries, SCHEMA))
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
    entries = recorded(folder / SEAL, SCHEMA)
    if entries is None:
        return f"{SEAL} is damaged"
    wrong = differing(folder, entries)
    return None if wrong is None else " ".join(wrong)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
