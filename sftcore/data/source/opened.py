"""Opens data files as bytes or texts: compressed ones too, up to a bound, and without a byte-order mark."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

from sftcore.core.errors import DataError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Endings of compressed files, behind the ending of the file inside."""
_LEAST, _RATIO = 2**28, 200
"""A compressed file may hold 256 MiB, or this many times its size: more is a bomb, and no text."""
_DELIMITERS = ",;\t|"
_SHOWN = 20


def ending(path: Path) -> str:
    """The ending that says what the file holds, without that of its compression.

    >>> ending(Path("a/train.JSONL.gz"))
    '.jsonl'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        return suffixes[-2] if len(suffixes) > 1 else suffixes[-1]
    return suffixes[-1] if suffixes else ""


def is_compressed(path: Path) -> bool:
    """Whether the name says that the file is compressed."""
    return path.suffix.lower() in COMPRESSED


def needs_python(path: Path) -> bool:
    """Whether `datasets` would not read the file as it is: it is compressed, or begins with a byte-order mark."""
    if is_compressed(path):
        return True
    with path.open("rb") as file:
        return file.read(3) == b"\xef\xbb\xbf"


class _Bounded(io.RawIOBase):
    """Bytes of a compressed file, no more of them than a text could have."""

    def __init__(self, inner: Any, path: Path) -> None:
        self._inner, self._path = inner, path
        self._left = max(_LEAST, _RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            found = self._inner.read(len(buffer))
        except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, ValueError) as error:
            what = f"the compressed file is damaged: {error}."
            raise DataError(what, where=str(self._path), fix="Write it again.") from None
        self._left -= len(found)
        if self._left < 0:
            what = "the file unpacks to more than any text would."
            raise DataError(what, where=str(self._path), fix="Unpack it, and give the file inside.")
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._inner.close()
        super().close()


def opened(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked if its name says that it is compressed.

    Raises:
        DataError: it is not what its name says, is damaged, or holds more than one file or more bytes than a text.
    """
    if not is_compressed(path):
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_Bounded(_unpacked(path), path), 2**16))


def _unpacked(path: Path) -> Any:
    suffix = path.suffix.lower()
    try:
        if suffix == ".zip":
            archive = zipfile.ZipFile(path)
            names = [one for one in archive.namelist() if not one.endswith("/") and not one.startswith("__MACOSX/")]
            if len(names) != 1:
                what = f"the archive holds {len(names)} files, and one is read."
                raise DataError(what, where=str(path), fix="Unpack it, and give the files inside.")
            return archive.open(names[0])
        if suffix == ".zst":
            import pyarrow

            return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
        openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
        return openers[suffix](path, "rb")
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the file is not what its name says: {error}.", where=str(path)) from None


def opened_text(path: Path, errors: str = "strict") -> io.TextIOWrapper:
    """The file as text with its line breaks as they are, without a byte-order mark."""
    return io.TextIOWrapper(opened(path), encoding="utf-8-sig", errors=errors, newline="")


def delimiter_of(path: Path) -> str:
    """What separates the cells of a table: comma, semicolon, tab or |, whichever divides its first rows evenly."""
    expected = "\t" if ending(path) == ".tsv" else ","
    with opened_text(path, "replace") as file:
        head = file.read(2**16)
    best, most = expected, 1
    for delimiter in sorted(_DELIMITERS, key=lambda one: one != expected):
        rows = [row for row in csv.reader(io.StringIO(head, newline=""), delimiter=delimiter) if row][:_SHOWN]
        counts = {len(row) for row in (rows[:-1] if len(rows) > 2 else rows)}
        if len(counts) == 1 and max(counts) > most and (best == expected and most == 1):
            best, most = delimiter, max(counts)
    return best


def not_utf8(path: Path, error: UnicodeDecodeError) -> tuple[str, str]:
    """What is wrong with a file that is not UTF-8, with the encoding that it seems to have, and how to mend it."""
    with opened(path) as file:
        head = file.read(4)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "the file is UTF-16, not UTF-8.", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW."
    byte = error.object[error.start]
    looks = f"It looks like a Windows encoding, such as Windows-1252 (byte 0x{byte:02x})."
    return f"the file is not UTF-8: {error}. {looks}", "Save it as UTF-8: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW."
