"""One entry of the cache: rows, facts and the checksums by which damage is found before a row is trained on.

The files of an entry are never changed. While a process has an entry mapped it holds a shared lock on its file `used`,
whose time is that of its last use; whoever removes entries takes that lock for itself.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
from attrs import evolve

from sftcore.data.account.outcomes import FILES as OUTCOMES
from sftcore.data.account.outcomes import Outcomes
from sftcore.data.columns import without_empty_weights
from sftcore.data.ledger import Ledger
from sftcore.util.checksums import checksums_of, differing, recorded, spelled
from sftcore.util.disk import sync

if TYPE_CHECKING:
    from datasets import Dataset

DATA, FACTS, SEAL, USED = "data.arrow", "entry.json", "checksums.json", "used"
FILES = (DATA, FACTS, *OUTCOMES)
SCHEMA = 1
_held: dict[Path, int] = {}
"""The open files that hold the locks of this process, for as long as it lives: rows may be mapped until then."""


class DamagedEntry(Exception):
    """An entry is not what was written; says how."""


def complete(folder: Path, facts: Mapping[str, Any], outcomes: Outcomes) -> None:
    """Add the facts, what became of each row, and the checksums to the rows in `folder`; write all of it to the disk.

    Raises:
        OSError: what the disk said.
    """
    (folder / FACTS).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    outcomes.write(folder)
    (folder / USED).touch()
    entries = checksums_of(folder, FILES, xxhash.xxh3_128, flush=True)
    (folder / SEAL).write_text(spelled(entries, SCHEMA), encoding="utf-8")
    # otherwise a name could survive a power cut while its rows do not
    for written in (folder / SEAL, folder):
        sync(written)


def facts_of(entry: Path) -> dict[str, Any] | None:
    """The facts of an entry, not compared with their checksum; None where they are none.

    `parts` is what it was made from, `name`, `rows_kept` and `tokens_kept` of `ledger` are a text and two numbers.
    """
    try:
        facts: dict[str, Any] = json.loads((entry / FACTS).read_text(encoding="utf-8"))
        parts, ledger = facts["parts"], facts["ledger"]
        numbers = [ledger["rows_kept"], ledger["tokens_kept"]]
        texts = [ledger["name"], *parts, *parts.values()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    fits = all(isinstance(one, str) for one in texts) and all(isinstance(one, int) for one in numbers)
    return facts if fits else None


def mapped(entry: Path, key: Mapping[str, str]) -> tuple[Dataset, Ledger] | None:
    """The memory-mapped rows of an entry and their ledger, every byte of which was compared; None if it is not there.

    Each process compares for itself: nothing else could tell it that what it maps is whole.

    Raises:
        DamagedEntry: it is there, and is not what was written, or is that of another key.
    """
    from datasets import Dataset

    if not os.path.isdir(entry):
        return None
    hold(entry)
    try:
        entries = recorded(entry / SEAL, SCHEMA, xxhash.xxh3_128)
        if entries is None or set(entries) != set(FILES):
            raise DamagedEntry(f"{entry / SEAL} is damaged")
        if wrong := differing(entry, entries, xxhash.xxh3_128):
            raise DamagedEntry(f"{entry / wrong[0]} {wrong[1]}")
        facts = json.loads((entry / FACTS).read_text(encoding="utf-8"))
        if facts["parts"] != dict(key):
            raise DamagedEntry(f"{entry} holds rows that were made from something else")
        dataset = Dataset.from_file(str(entry / DATA))
    except (DamagedEntry, OSError) as error:
        release(entry)
        if not os.path.isdir(entry):  # removed since it was looked for
            return None
        if isinstance(error, OSError):
            raise DamagedEntry(f"{error.filename or entry} cannot be read: {error.strerror or error}") from error
        raise
    ledger = evolve(Ledger.from_dict(facts["ledger"]), outcomes=Outcomes.read(entry))
    return dataset.select_columns(without_empty_weights(dataset.data.table).column_names), ledger


def hold(entry: Path) -> None:
    """Keep others from removing an entry while this process lives, and remember that it is used."""
    if entry in _held:
        return
    used = entry / USED
    with contextlib.suppress(OSError):  # a cache that is only read keeps no times, and has nobody who removes entries
        os.utime(used)
    with contextlib.suppress(OSError, ImportError):
        import fcntl  # elsewhere the system keeps files that are mapped

        file = os.open(used, os.O_RDONLY)
        fcntl.flock(file, fcntl.LOCK_SH)  # waits at most as long as it takes to remove the entry
        _held[entry] = file


def release(entry: Path) -> None:
    """Let others remove an entry."""
    if (file := _held.pop(entry, None)) is not None:
        os.close(file)


@contextlib.contextmanager
def unused(entry: Path) -> Iterator[bool]:
    """A context that says whether no process has this entry mapped, and in which none begins to."""
    with contextlib.ExitStack() as stack:
        yield _is_free(entry / USED, stack)


def _is_free(used: Path, stack: contextlib.ExitStack) -> bool:
    """Whether nobody holds the lock, which `stack` holds from here on."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        file = stack.enter_context(used.open())
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:  # the entry was never complete
        return True
    except OSError:
        return False
    return True
