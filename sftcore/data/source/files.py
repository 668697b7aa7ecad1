"""Finds local data files, and reads them with the standard library up to what is broken in them."""

from __future__ import annotations

import glob
import itertools
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from attrs import evolve, frozen

from sftcore.config.data.section import SampleBy
from sftcore.core.errors import DataError, quoted
from sftcore.data.source.opened import ending, is_compressed, not_utf8, opened
from sftcore.data.source.rows import Raw, rows_in
from sftcore.util.secrets import without_secrets
from sftcore.util.warned import warn

BUILDERS = {
    ".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".txt": "text",
}  # fmt: skip
"""File extensions, with what reads them."""
_SHEETS = (".xlsx", ".xls", ".xlsm", ".ods")
_NOT_ROWS = re.compile(
    r"(config|.*_config|dataset_infos?|dataset_dict|state|tokenizer|vocab|special_tokens_map|package)\.json|requirements.*"
    r"\.txt|licen[sc]e.*|readme.*"
)
"""Names of files that stand beside data and hold none."""
_ADDRESS = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+)://")
_ON_THE_HUB = re.compile(r"(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/([\w.-]+/[\w.-]+)")
_PACKED = {
    "gzip": (0, b"\x1f\x8b"), "zip": (0, b"PK\x03\x04"), "empty zip": (0, b"PK\x05\x06"), "bzip2": (0, b"BZh"),
    "xz": (0, b"\xfd7zXZ\x00"), "zstd": (0, b"\x28\xb5\x2f\xfd"), "lz4": (0, b"\x04\x22\x4d\x18"),
    "7z": (0, b"7z\xbc\xaf\x27\x1c"), "rar": (0, b"Rar!"), "tar": (257, b"ustar"),
}  # fmt: skip
"""The bytes by which compressed files and archives are known, and where in the file they are."""


@frozen
class Files:
    """Local files of one type; the builder "arrow" stands for a folder that `Dataset.save_to_disk` wrote.

    `sample_by` is what a row of text files is.
    """

    paths: tuple[Path, ...]
    builder: str
    sample_by: SampleBy = "line"

    @property
    def label(self) -> str:
        """The name of the files in errors and reports."""
        first = str(self.paths[0])
        return first if len(self.paths) == 1 else f"{first} and {len(self.paths) - 1} more"


def local_files(source: str | Sequence[str], sample_by: SampleBy | None = None) -> Files | None:
    """The files that a recipe's data entry names, or None if it is a hub id.

    Raises:
        DataError: a path does not exist, is empty, or has a type that cannot be read; or `sample_by` is given for
            files that are not text.
    """
    files = _files(source)
    if sample_by is None:
        return files
    if files is None or files.builder != "text":
        raise DataError(
            "sample_by says what a row of a .txt file is, and these are not.",
            where=str(source) if files is None else files.label,
            fix="Give it to the source that has them: data: [{path: notes.txt, sample_by: document}, …].",
        )
    return evolve(files, sample_by=sample_by)


def _files(source: str | Sequence[str]) -> Files | None:
    for text in [source] if isinstance(source, str) else source:
        _refuse_address(text)
    if isinstance(source, str):
        if not _is_local(source):
            return None
        source = [source]
    if len(source) == 1 and (Path(source[0]).expanduser() / "state.json").is_file():
        return Files((Path(source[0]).expanduser(),), "arrow")
    paths = tuple(path for text in source for path in _expand(Path(text).expanduser()))
    builders = sorted({BUILDERS[_ending(path)] for path in paths})
    if len(builders) > 1:
        raise DataError(
            f"the files are of different types: {quoted(builders)}.",
            where=", ".join(source),
            fix="Give files of one type, as a pattern (data/*.jsonl) or a list.",
        )
    for path in paths:
        if path.stat().st_size == 0:
            raise DataError("the file is empty.", where=str(path), fix="Give a file with at least one row.")
        _refuse_packed(path, builders[0])
    return Files(paths, builders[0])


def _refuse_address(text: str) -> None:
    """Refuse the address of a file elsewhere by its own name: as a path, it would lose a slash.

    Raises:
        DataError: it is an address.
    """
    if (found := _ADDRESS.match(text)) is None:
        return
    scheme, rest = found[1].lower(), text[found.end() :]
    fix = "Copy the file to this machine, or mount where it is, and give its path."
    if scheme == "file":
        fix = f"Write its path: {without_secrets(unquote(re.sub('^localhost(?=/)', '', rest)))}"
    elif hub := _ON_THE_HUB.match(rest if scheme != "hf" else f"huggingface.co/{rest}"):
        fix = f"Write the data set's hub id: {hub[1]}"
    what = f"this is an address ({scheme}://), and rows are read from files of this machine or a data set of the hub."
    raise DataError(what, where=without_secrets(text), fix=fix)


def first_rows(files: Files, limit: int, start: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Up to `limit` rows from `start` on, each with its location (`file row 3`).

    There are none if the standard library cannot read the type.
    """
    return list(itertools.islice(scan(files), start, start + limit))


def scan(files: Files) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row with its location; none if the standard library cannot read the type.

    Raises:
        DataError: broken JSON, with the line; or a row that is not a mapping, with its number, counted from 0.
    """
    for path in () if files.builder in ("parquet", "arrow") else files.paths:
        # the first fault ends it, so that all before are rows
        for number, raw in enumerate(rows_in(path, files.builder, files.sample_by)):
            if raw.row is None:
                raise _error_of(raw, path, number)
            yield f"{path} row {number}", raw.row


def _error_of(raw: Raw, path: Path, number: int) -> DataError:
    """The fault in the place of a row, for a run, which stops at it."""
    fault = raw.fault
    assert fault is not None
    if fault.bad is not None:
        what, fix = not_utf8(path, fault.bad)
        return DataError(what, where=str(path) if raw.line is None else f"{path} line {raw.line}", fix=fix)
    row, line = f"{path} row {number}", f"{path} line {raw.line}"
    if fault.id == "not-a-row":
        where = str(path) if raw.whole_file else row
        return DataError(f"{fault.detail}, not a mapping of columns to values.", where=where, fix=fault.fix)
    if fault.id == "broken-csv":
        where = str(path) if raw.whole_file else row
        return DataError(f"broken CSV: {fault.detail}.", where=where, fix=fault.fix or "Correct that row.")
    if fault.id == "lone-surrogate":
        what = "half a surrogate pair, which is not a character."
        return DataError(what, where=line, fix="Correct or delete it.")
    return DataError(f"broken JSON: {fault.detail}.", where=line, fix=fault.fix or "Correct or delete that line.")


def _is_local(text: str) -> bool:
    path = Path(text).expanduser()
    looks_like_a_path = text.startswith((".", "/", "~", "\\")) or _ending(path) in BUILDERS
    return looks_like_a_path or path.exists() or glob.has_magic(text)


def _expand(path: Path) -> list[Path]:
    if not path.exists():
        if glob.has_magic(str(path)) and (matching := sorted(glob.glob(str(path), recursive=True))):
            return [inner for text in matching for inner in _expand(Path(text))]
        raise DataError("no such file.", where=str(path), fix=_neighbours(path))
    if path.is_file():
        if path.suffix.lower() in _SHEETS:
            what = "this is a spreadsheet, which is not read."
            raise DataError(what, where=str(path), fix="Save the sheet as CSV (UTF-8), and give that file.")
        if _ending(path) not in BUILDERS:
            what = f'files ending in "{path.suffix}" cannot be read.'
            raise DataError(what, where=str(path), fix=f"Endings: {', '.join(BUILDERS)}.")
        return [path]
    if not path.is_dir():
        raise DataError("this is neither a file nor a folder.", where=str(path), fix="Write the rows to a file.")
    # links are followed, because snapshots in the hub's cache consist of them
    inside = sorted(inner for inner in path.rglob("*") if inner.is_file() and _may_be_data(inner.relative_to(path)))
    found = [inner for inner in inside if _ending(inner) in BUILDERS and not _NOT_ROWS.fullmatch(inner.name.lower())]
    if not found:
        raise DataError("the folder holds no data files.", where=str(path), fix=f"Endings: {', '.join(BUILDERS)}.")
    return _of_one_type(path, found)


def _may_be_data(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


def _of_one_type(folder: Path, found: list[Path]) -> list[Path]:
    """The files of the type that has the most bytes; the others are said."""
    sizes: dict[str, int] = {}
    for path in found:
        builder = BUILDERS[_ending(path)]
        sizes[builder] = sizes.get(builder, 0) + path.stat().st_size
    most = max(sizes, key=lambda builder: sizes[builder])
    taken = [path for path in found if BUILDERS[_ending(path)] == most]
    if left := [path.name for path in found if path not in taken]:
        more = ", …" if len(left) > 5 else ""
        warn(
            f"{folder}: of its files, {len(taken):,} of type {most} are read "
            f"({taken[0].name}{', …' * (len(taken) > 1)}), and {len(left):,} other are not "
            f"({', '.join(left[:5])}{more})."
        )
    return taken


def _refuse_packed(path: Path, builder: str) -> None:
    """Refuse archives and compressed files: whatever the name, `datasets` would unpack them, however large they get.

    Raises:
        DataError: it is one of them, or a .parquet file does not hold Parquet.
    """
    if is_compressed(path):
        if builder == "parquet":
            what = "a Parquet file is compressed inside, and not read in another file."
            raise DataError(what, where=str(path), fix="Unpack it.")
        opened(path).close()
        return
    with path.open("rb") as file:
        head = file.read(512)
    if builder == "parquet" and not head.startswith(b"PAR1"):
        raise DataError("the file is not a Parquet file, because it does not begin with PAR1.", where=str(path))
    kind = next((name for name, (at, magic) in _PACKED.items() if head[at:].startswith(magic)), None)
    if kind is not None:
        what = f"the file is compressed or an archive ({kind})."
        raise DataError(what, where=str(path), fix="Unpack it, and give the files inside.")


def _ending(path: Path) -> str:
    if path.suffix.lower() == ".zip" and ending(path) == ".zip":
        return _inside(path)
    return ending(path)


def _inside(path: Path) -> str:
    """The ending of the one file in an archive whose own name does not say it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX/") and name[-1] != "/"]
    except (OSError, zipfile.BadZipFile):
        return ".zip"
    return ending(Path(names[0])) if len(names) == 1 else ".zip"


def _neighbours(path: Path) -> str:
    folder = path.parent
    there = sorted(inner.name for inner in folder.glob("*") if _ending(inner) in BUILDERS) if folder.is_dir() else []
    return f"In {folder}: {', '.join(there[:6])}." if there else f"Check the path; the current folder is {Path.cwd()}."
