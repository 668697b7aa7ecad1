"""The checksum file of a checkpoint: the last thing written into it, and the first thing read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from attrs import frozen

from sftcore.util.checksums import checksums_of, differences, recorded, spelled
from sftcore.util.disk import sync

SEAL = "checksums.json"
SCHEMA = 1
_TEXTS = (".md", ".txt", ".html", ".json", ".jsonl", ".jinja", ".yaml", ".yml", ".py")
_STATES = ("trainer_state", "run_state")
_OTHERS = ("training_args.bin",)


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


@frozen
class Compared:
    """A sealed folder beside what was sealed.

    fault: what is wrong with weights or state, with the file's name; None where they are as they were written.
    rewritten: of other files what differs: they hold nothing that a run resumes from.
    weights: the files of weights that can be read and are not what was written, where nothing else is wrong.
    """

    fault: str | None
    rewritten: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()


def fault(folder: Path) -> str | None:
    """What is wrong with weights or state of a sealed folder, with the file's name; None where nothing is."""
    return compared(folder).fault


def compared(folder: Path) -> Compared:
    """A folder beside its checksums.

    Files that the checksum file does not name are not judged: callbacks may add some after a save, or write a model
    card of their own over ours.
    """
    entries = recorded(folder / SEAL, SCHEMA)
    if entries is None:
        return Compared(f"{SEAL} is damaged")
    differ = {name: f"{name} {said}" for name, said in differences(folder, entries).items()}
    faults = {name: said for name, said in differ.items() if _is_needed(folder / name)}
    weights = tuple(name for name in faults if _is_readable(folder / name))
    return Compared(
        next(iter(faults.values()), None),
        tuple(said for name, said in differ.items() if name not in faults),
        weights if len(weights) == len(faults) else (),
    )


def _is_needed(path: Path) -> bool:
    """Whether a run resumes from this file: weights and state, but not texts and descriptions that can be read."""
    if path.suffix not in _TEXTS or path.name.startswith(_STATES) or path.name.endswith(".index.json"):
        return path.name not in _OTHERS
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json.loads(text)
    except OSError:
        return path.suffix == ".json"
    except ValueError:
        return True
    return False


def _is_readable(path: Path) -> bool:
    """Whether it is a whole file of weights, whatever they are."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return bool(file.keys())
    except (SafetensorError, OSError):
        return False


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
