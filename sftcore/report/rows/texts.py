"""Reads rows of a run's data files again, to show them as they are."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sftcore.core.errors import SFTCoreError
from sftcore.data.source.files import Files, local_files
from sftcore.data.source.rows import raw_rows
from sftcore.report.rows.ranked import RankedRow

NO_FILE = "the rows were not read from a local file"
_CHUNK = 2**20


def texts_of(rows: Sequence[RankedRow], folder: Path) -> tuple[list[str | None], list[str]]:
    """Each row as JSON, None where it cannot be had, and why not, or what to mind, in sentences.

    Args:
        rows: of a list.
        folder: of the run, or where the list is; its manifest says what the files held.
    """
    recorded = _recorded(folder)
    wanted: dict[str, set[int]] = {}
    for one in rows:
        if one.file is not None and one.file_row is not None:
            wanted.setdefault(one.file, set()).add(one.file_row)
    found: dict[tuple[str, int], str] = {}
    notes = []
    if any(one.file is None for one in rows):
        notes.append(f"{NO_FILE}, so their texts are not at hand")
    for file, numbers in wanted.items():
        path = _existing(file, folder)
        if path is None:
            notes.append(f"{file} is not there any more")
            continue
        if (digest := recorded.get(file)) is not None and path.is_file() and digest != _sha256(path):
            notes.append(f"{file} has changed since the run: its rows may be others now")
        for number, text in _read(path, numbers):
            found[file, number] = text
    return [found.get((one.file or "", -1 if one.file_row is None else one.file_row)) for one in rows], notes


def _read(path: Path, numbers: set[int]) -> Iterator[tuple[int, str]]:
    """The rows of one file with these numbers, as JSON on one line."""
    try:
        files = local_files(str(path))
    except SFTCoreError:
        return
    if files is None:
        return
    within = itertools.islice(_rows(path, files), max(numbers) + 1)
    for number, row in enumerate(within):
        if number in numbers and row is not None:
            yield number, json.dumps(row, ensure_ascii=False, default=_shown)


def _rows(path: Path, files: Files) -> Iterator[Mapping[str, Any] | None]:
    return (raw.row for raw in raw_rows(path, files.builder, files.sample_by) if not raw.whole_file)


def _shown(value: Any) -> str:
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else str(value)


def _existing(file: str, folder: Path) -> Path | None:
    """The file by its name as it was written, from here or from beside the run."""
    path = Path(file).expanduser()
    return next((one for one in (path, folder / path, folder.parent / path) if one.exists()), None)


def _recorded(folder: Path) -> Mapping[str, Any]:
    """The digests of the files that the run read; empty where nothing is known of them, or streams were sampled."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        digests = manifest["data_files_sha256"]
        data = manifest["recipe"]["data"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    streamed = isinstance(data, Mapping) and data.get("streaming")
    return digests if isinstance(digests, Mapping) and not streamed else {}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
