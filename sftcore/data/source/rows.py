"""Reads local files row by row: what is broken is found in the place of its row, and the rows behind it are read on.

A run stops at the first fault (see `scan` in sftcore.data.source.files), `sftcore check` names all of them.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import define, evolve, frozen

from sftcore.config.data.section import SampleBy
from sftcore.data.source.opened import delimiter_of, opened_text
from sftcore.data.source.texts import texts_in
from sftcore.rows.columns import as_meant

_SPACE = re.compile(r"[ \t\r\n]*")
_BLANKS = " \t\r\n\f\v"
_BAD = re.compile("[\udc80-\udcff]")
"""Bytes that are no UTF-8, as `surrogateescape` keeps them in their row, so that the other rows can still be read."""
_UTF16_BOMS = ("\udcff\udcfe", "\udcfe\udcff")


@frozen
class Fault:
    """Why something in a file is not a row: a finding's id, a detail, and a fix if the kind of finding has none.

    `bad` is what says which byte is not UTF-8.
    """

    id: str
    detail: str = ""
    fix: str = ""
    bad: UnicodeDecodeError | None = None


@frozen
class Raw:
    """A row as it is in its file, or the fault found in its place.

    `line` counts from 1, if the file has lines. A fault of the whole file does not count as a row.
    """

    row: dict[str, Any] | None = None
    line: int | None = None
    fault: Fault | None = None
    whole_file: bool = False


def raw_rows(path: Path, builder: str, sample_by: SampleBy = "line") -> Iterator[Raw]:
    """Every row of one file, or the fault found in its place; never raises because of the file's contents."""
    try:
        yield from rows_in(path, builder, sample_by)
    except Exception as error:  # a reader may raise anything for a damaged file
        yield _of_file("unreadable", f"{type(error).__name__}: {error}")


def rows_in(path: Path, builder: str, sample_by: SampleBy = "line") -> Iterator[Raw]:
    """The same for a file that can be opened and unpacked.

    Raises:
        DataError: it cannot.
    """
    readers: dict[str, Callable[[Path], Iterator[Raw]]] = {
        "csv": _csv, "text": functools.partial(_texts, sample_by=sample_by), "parquet": _parquet, "arrow": _arrow,
    }  # fmt: skip
    return readers.get(builder, _json)(path)


@define
class Window:
    """The rows that a run uses, from `start` to before `stop` of all files; `keep` are their columns, None: all."""

    start: int
    stop: float
    keep: Sequence[str] | None
    _position: int = 0

    def of(self, raws: Iterable[Raw]) -> Iterator[Raw]:
        """Those rows of the next file that are used, with the columns that are kept."""
        for raw in raws:
            self._position += not raw.whole_file
            if not raw.whole_file and self._position <= self.start:
                continue
            if raw.row is not None and self.keep is not None:
                raw = evolve(raw, row={name: raw.row[name] for name in self.keep if name in raw.row})
            yield raw
            if self.closed:
                return

    @property
    def position(self) -> int:
        """How many rows there were up to here, used or not."""
        return self._position

    @property
    def closed(self) -> bool:
        """Whether no further row is used."""
        return self._position >= self.stop


def _of_file(fault: str, detail: str = "", fix: str = "", line: int | None = None) -> Raw:
    return Raw(line=line, fault=Fault(fault, detail, fix), whole_file=True)


def _not_utf8(text: str) -> Fault | None:
    """The fault of a text with bytes that are not UTF-8."""
    if text.isascii() or not _BAD.search(text):
        return None
    try:
        text.encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError as error:
        return Fault("not-utf8", f"{error.reason} at byte {error.start}", bad=error)
    return None


# --- JSON -----------------------------------------------------------------------------------------------------------
class _TwiceError(ValueError):
    """A key occurs twice in one mapping: Arrow refuses that, and Python's json would keep the last."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _json(path: Path) -> Iterator[Raw]:
    with opened_text(path, "surrogateescape") as file:
        before = char = file.read(1)
        while char.isspace():
            char = file.read(1)
            before += char
        if (before[-1:] + file.read(1)) in _UTF16_BOMS:
            yield Raw(
                fault=evolve(_not_utf8(before) or Fault("not-utf8"), detail="the file is UTF-16"), whole_file=True
            )
            return
    with opened_text(path, "surrogateescape") as file:
        if before[-1:] == "[":
            yield from _json_array(file.read())
            return
        first = file.readline()
        if first.strip() == "{":
            first += file.read()
            if keys := _one_object(first):
                fix = "Write its rows as a list, or one on each line."
                yield _of_file("not-a-row", f"the whole file is one object with the keys {keys}", fix)
                return
            yield from _json_lines(io.StringIO(first, newline=""))
            return
        yield from _json_lines([first])
        yield from _json_lines(file, 2)


def _one_object(text: str) -> str:
    """The keys of a file that holds one indented object instead of rows."""
    try:
        found = json.loads(text)
    except ValueError:
        return ""
    return ", ".join(map(str, list(found)[:5]))


def _json_lines(lines: Iterable[str], first: int = 1) -> Iterator[Raw]:
    for number, line in enumerate(lines, first):
        if bare := line.strip(_BLANKS):
            fault = _not_utf8(line)
            yield Raw(line=number, fault=fault) if fault else _element(bare, 0, number, alone=True)[1]


def _json_array(text: str) -> Iterator[Raw]:
    """The elements of one list. After a broken element, reading goes on at the next one that begins like the first."""
    if fault := _not_utf8(text):
        place = _BAD.search(text)
        line = text.count("\n", 0, place.start() if place else 0) + 1
        yield Raw(line=line, fault=fault, whole_file=True)
        text = text.encode("utf-8", "surrogateescape").decode(errors="replace")
    at = _skip(text, text.index("[") + 1)
    indent = text[text.rfind("\n", 0, at) + 1 : at]
    begin = re.compile(rf"^{re.escape(indent)}(?=\{{)", re.MULTILINE)
    line, seen = 1, 0
    while text[at : at + 1] != "]":
        line, seen = line + text.count("\n", seen, at), at
        end, raw_row = _element(text, at, line)
        yield raw_row
        if end is not None:
            following = _skip(text, end)
            mark = text[following : following + 1]
            if mark == ",":
                at = _skip(text, following + 1)
                if text[at : at + 1] == "]":
                    yield _broken_list(text, at, "there is a comma before the end of the list")
                    return
                continue
            if mark == "]":
                at = following
                break
            yield _broken_list(text, following, "a comma is missing" if mark else "the list has no end")
        found = begin.search(text, at + 1)
        if found is None:
            if end is None:
                yield _broken_list(text, at, "the rows after this one were not read")
            return
        at = found.end()
    if _skip(text, at + 1) < len(text):
        yield _broken_list(text, _skip(text, at + 1), "there is more text after the list")


def _element(text: str, at: int, line: int, *, alone: bool = False) -> tuple[int | None, Raw]:
    """Where the element ends, or None if it is broken, and the element itself; `alone` on its line, or in a list."""
    try:
        value, end = (_DECODER.decode(text), len(text)) if alone else _DECODER.raw_decode(text, at)
        if _has_surrogates(text, at, end, value):
            return end, Raw(line=line, fault=Fault("lone-surrogate"))
        if not isinstance(value, dict):
            return end, Raw(line=line, fault=Fault("not-a-row", f"this is {type(value).__name__}"))
        meant = as_meant(value) if text.find("null", at, end) >= 0 else value  # nobody filled anything in
        return end, Raw(meant, line)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if alone else f"line {error.lineno} column {error.colno}"
        detail = f"{error.msg.removesuffix(' at')} at {place}"
    except (ValueError, RecursionError) as error:
        detail = _too_much(error)
    return None, Raw(line=line, fault=Fault("broken-json", detail))


def _has_surrogates(text: str, start: int, end: int, value: Any) -> bool:
    """Whether the value holds half a character, which JSON can spell but neither Arrow nor a tokenizer accepts."""
    if text.find("\\ud", start, end) < 0 and text.find("\\uD", start, end) < 0:
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _too_much(error: Exception) -> str:
    """Why JSON whose syntax is correct cannot be read."""
    if isinstance(error, _TwiceError):
        return f'the key "{error}" stands twice'
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _broken_list(text: str, at: int, detail: str) -> Raw:
    return _of_file("broken-json", detail, "Correct the list there.", text.count("\n", 0, at) + 1)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


# --- Tables and texts -------------------------------------------------------------------------------------------------
_UNCLOSED = "a quote opens a cell here and is not closed, so that all lines to the end of the file would be that cell"


class _Lines:
    """The lines of a table; `ended` says whether one was asked for after the last.

    The reader of a table asks so within a row only where a quote is open: it then takes what it has for the row.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self._lines)
        except StopIteration:
            self.ended = True
            raise


def _csv(path: Path) -> Iterator[Raw]:
    csv.field_size_limit(sys.maxsize)
    with opened_text(path, "surrogateescape") as file:
        lines = _Lines(file)
        reader = csv.DictReader(lines, delimiter=delimiter_of(path))
        header = list(reader.fieldnames or ())
        if lines.ended and header:
            yield _of_file("broken-csv", _UNCLOSED, "Close it.", 1)
        if fault := _not_utf8("".join(header)):
            yield Raw(line=1, fault=fault, whole_file=True)
        if twice := [name for name in header if header.count(name) > 1]:
            yield _of_file("broken-csv", f'the header names the column "{twice[0]}" twice', "Rename one of them.", 1)
        while True:
            line = reader.line_num + 1
            try:
                row: dict[Any, Any] | None = next(reader, None)
            except csv.Error as error:
                yield Raw(line=line, fault=Fault("broken-csv", f"{error}"))
                continue
            if row is None:
                return
            line = max(line, 2)  # the first row is below the header
            if lines.ended:
                yield Raw(line=line, fault=Fault("broken-csv", _UNCLOSED, "Close it, or double a quote that is meant."))
            elif None in row:
                cells, columns = len(row) - 1 + len(row[None]), len(row) - 1
                detail = f"the row has {cells} cells, but the header has {columns} columns"
                yield Raw(line=line, fault=Fault("broken-csv", detail, "Quote cells that contain the separator."))
            elif fault := _not_utf8("".join(cell for cell in row.values() if isinstance(cell, str))):
                yield Raw(line=line, fault=fault)
            else:
                yield Raw({column: cell or None for column, cell in row.items()}, line)


def _texts(path: Path, sample_by: SampleBy) -> Iterator[Raw]:
    with opened_text(path, "surrogateescape") as file:
        for number, text in texts_in(file, sample_by):
            fault = _not_utf8(text)
            yield Raw(line=number, fault=fault) if fault else Raw({"text": text}, number)


# --- Arrow ------------------------------------------------------------------------------------------------------------
def _parquet(path: Path) -> Iterator[Raw]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(100):  # a text that is stored once may occur in every row
            yield from map(Raw, batch.to_pylist())


def _arrow(folder: Path) -> Iterator[Raw]:
    """The rows of a folder that `Dataset.save_to_disk` wrote."""
    import pyarrow

    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    for file in state["_data_files"]:
        with pyarrow.memory_map(str(folder / file["filename"])) as source, pyarrow.ipc.open_stream(source) as batches:
            for batch in batches:
                for start in range(0, len(batch), 1000):
                    yield from map(Raw, batch.slice(start, 1000).to_pylist())
