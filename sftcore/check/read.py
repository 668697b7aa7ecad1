"""Reads local files row by row and goes on after errors: a report names all of them, a run stops at the first."""

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

from attrs import evolve, frozen

from sftcore.config.data.section import SampleBy
from sftcore.data.source.files import has_surrogates, too_much, unique
from sftcore.data.source.opened import delimiter_of, is_compressed, opened, opened_text
from sftcore.data.source.texts import texts_in

_SPACE = re.compile(r"[ \t\r\n]*")
_UTF8_BOM, _UTF16_BOMS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


@frozen
class Fault:
    """Why something in a file is not a row: a finding's id, a detail, and a fix if the kind of finding has none."""

    id: str
    detail: str = ""
    fix: str = ""


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
    texts = functools.partial(_texts, sample_by=sample_by)
    readers: dict[str, Callable[[Path], Iterator[Raw]]] = {
        "csv": _csv, "text": texts, "parquet": _parquet, "arrow": _arrow,
    }  # fmt: skip
    try:
        yield from readers.get(builder, _json)(path)
    except Exception as error:  # a reader may raise anything for a damaged file
        yield _of_file("unreadable", f"{type(error).__name__}: {error}")


def as_used(raws: Iterable[Raw], limit: float, keep: Sequence[str] | None) -> Iterator[Raw]:
    """The first rows as a run uses them, with the columns that it keeps; None keeps all."""
    for raw in raws:
        if raw.row is not None and keep is not None:
            raw = evolve(raw, row={name: raw.row[name] for name in keep if name in raw.row})
        yield raw
        limit -= not raw.whole_file
        if limit <= 0:
            return


def _of_file(fault: str, detail: str = "", fix: str = "", line: int | None = None) -> Raw:
    return Raw(line=line, fault=Fault(fault, detail, fix), whole_file=True)


# --- JSON -----------------------------------------------------------------------------------------------------------
_DECODER = json.JSONDecoder(object_pairs_hook=unique)


def _json(path: Path) -> Iterator[Raw]:
    with io.BytesIO(opened(path).read()) if is_compressed(path) else path.open("rb") as file:
        head = file.read(4096)
        if head.startswith(_UTF16_BOMS):
            yield _of_file("not-utf8", "the file is UTF-16")
            return
        start = len(_UTF8_BOM) if head.startswith(_UTF8_BOM) else 0
        while head[start:].isspace() and (more := file.read(4096)):
            head += more
        file.seek(start)
        if head[start:].lstrip()[:1] == b"[":
            yield from _json_array(file.read())
        else:
            first = file.readline()
            if first.strip() == b"{" and (keys := _one_object(first + file.read())):
                fix = "Write its rows as a list, or one on each line."
                yield _of_file("not-a-row", f"the whole file is one object with the keys {keys}", fix)
                return
            file.seek(start)
            yield from _json_lines(file)


def _one_object(raw: bytes) -> str:
    """The keys of a file that holds one indented object instead of rows."""
    try:
        found = json.loads(raw)
    except ValueError:
        return ""
    return ", ".join(map(str, list(found)[:5]))


def _json_lines(lines: Iterator[bytes]) -> Iterator[Raw]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                yield Raw(line=number, fault=_not_utf8(error))
                continue
            yield _element(text.strip(), 0, number, alone=True)[1]


def _json_array(raw: bytes) -> Iterator[Raw]:
    """The elements of one list. After a broken element, reading goes on at the next one that begins like the first."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        text = raw.decode(errors="replace")
        yield Raw(line=raw.count(b"\n", 0, error.start) + 1, fault=_not_utf8(error), whole_file=True)
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
        if has_surrogates(text[at:end], value):
            return end, Raw(line=line, fault=Fault("lone-surrogate"))
        if not isinstance(value, dict):
            return end, Raw(line=line, fault=Fault("not-a-row", f"this is {type(value).__name__}"))
        return end, Raw(value, line)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if alone else f"line {error.lineno} column {error.colno}"
        detail = f"{error.msg.removesuffix(' at')} at {place}"
    except (ValueError, RecursionError) as error:
        detail = too_much(error)
    return None, Raw(line=line, fault=Fault("broken-json", detail))


def _broken_list(text: str, at: int, detail: str) -> Raw:
    return _of_file("broken-json", detail, "Correct the list there.", text.count("\n", 0, at) + 1)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _not_utf8(error: UnicodeDecodeError) -> Fault:
    return Fault("not-utf8", f"{error.reason} at byte {error.start}")


# --- Tables ---------------------------------------------------------------------------------------------------------
def _csv(path: Path) -> Iterator[Raw]:
    csv.field_size_limit(sys.maxsize)
    # surrogateescape keeps an invalid byte in its row, so that the other rows can still be read
    with opened_text(path, "surrogateescape") as file:
        reader = csv.DictReader(file, delimiter=delimiter_of(path))
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
            if None in row:
                cells, columns = len(row) - 1 + len(row[None]), len(row) - 1
                detail = f"the row has {cells} cells, but the header has {columns} columns"
                yield Raw(line=line, fault=Fault("broken-csv", detail, "Quote cells that contain the separator."))
            elif any(isinstance(cell, str) and re.search("[\udc80-\udcff]", cell) for cell in row.values()):
                yield Raw(line=line, fault=Fault("not-utf8"))
            else:
                yield Raw({column: cell or None for column, cell in row.items()}, line)


def _texts(path: Path, sample_by: SampleBy) -> Iterator[Raw]:
    with opened_text(path, "surrogateescape") as file:
        for number, text in texts_in(file, sample_by):
            bad = re.search("[\udc80-\udcff]", text)
            yield Raw(line=number, fault=Fault("not-utf8")) if bad else Raw({"text": text}, number)


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
