"""Makes data sets of rows that Python has read, with every value as it is: what Arrow cannot hold is kept as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftcore.config.data.section import SampleBy
from sftcore.data.source.as_written import ARGUMENTS, MEANT
from sftcore.data.source.files import Files, scan

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d.*)?\Z")
_CHUNK = 10_000
_MIXED = object()


def is_uniform(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether Arrow's reader of JSON would keep the values of these rows: of one type each, and with the same keys.

    It turns texts that are dates into times, fills the keys of mappings, and refuses what differs in type.
    """
    columns = {key for row in rows for key in row}
    kinds = (_joined(_kind(row.get(column)) for row in rows) for column in columns)
    return not any(kind is _MIXED or _has_dates(kind) for kind in kinds)


def dataset_of(files: Files) -> Dataset:
    """All rows of these files."""
    import datasets
    import pyarrow as pa

    from sftcore.data.store.exact import ExactJson, encoded

    rows = [row for _, row in scan(files)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    arrays: dict[str, Any] = {}
    features: dict[str, Any] = {}
    for column in columns:
        values = [row.get(column) for row in rows]
        try:
            if _joined(map(_kind, values)) is _MIXED:
                raise pa.ArrowInvalid("mixed")
            arrays[column] = pa.array(values)
            features[column] = datasets.features.features.generate_from_arrow_type(arrays[column].type)
        except (pa.ArrowException, OverflowError, NotImplementedError):
            arrays[column], features[column] = encoded(values), ExactJson()
    described = datasets.DatasetInfo(features=datasets.Features(features))
    return datasets.Dataset(datasets.table.InMemoryTable(pa.table(arrays)), info=described)


def stream_of(files: Files, columns: Sequence[str]) -> IterableDataset:
    """The rows of these files as they are read; each has these columns."""
    import datasets

    # lists are what datasets shares out among processes
    arguments: dict[str, Any] = {"paths": list(map(str, files.paths)), "builder": files.builder}
    arguments |= {"columns": tuple(columns), "sample_by": files.sample_by}
    return datasets.IterableDataset.from_generator(_rows, gen_kwargs=arguments)


def _rows(paths: Iterable[str], builder: str, columns: Sequence[str], sample_by: SampleBy) -> Iterator[dict[str, Any]]:
    empty = dict.fromkeys(columns)
    for _, row in scan(Files(tuple(map(Path, paths)), builder, sample_by)):
        yield {**empty, **row}


# --- Kinds of values ------------------------------------------------------------------------------------------------
def _kind(value: Any, depth: int = 0) -> Any:
    """The kind of a value: its type, and those of what it holds; `depth` is how many mappings it lies in."""
    if isinstance(value, str):
        return "date" if _DATE.match(value) else "text"
    if isinstance(value, Mapping):
        if depth >= MEANT and None in value.values():
            return _MIXED
        parts = {key: _kind(part, MEANT if key in ARGUMENTS else depth + 1) for key, part in value.items()}
        return _MIXED if any(part is _MIXED for part in parts.values()) else parts
    if isinstance(value, list):
        kind = _joined(_kind(part, depth) for part in value)
        return _MIXED if kind is _MIXED else [kind]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return _MIXED
    return None if value is None else type(value).__name__


def _joined(kinds: Iterable[Any]) -> Any:
    """The kind of all of these, or _MIXED where there is none; null fits all but the keys of mappings."""
    found: Any = None
    for kind in kinds:
        found = _both(found, kind)
        if found is _MIXED:
            return found
    return found


def _both(one: Any, other: Any) -> Any:
    if one is None or other is None or one == other:
        return other if one is None else one
    if {"date", "text"} == {one, other} if isinstance(one, str) and isinstance(other, str) else False:
        return "text"
    if isinstance(one, list) and isinstance(other, list):
        found = _both(one[0], other[0])
        return _MIXED if found is _MIXED else [found]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        parts = {key: _both(one[key], other[key]) for key in one}
        return _MIXED if any(part is _MIXED for part in parts.values()) else parts
    return _MIXED


def _has_dates(kind: Any) -> bool:
    if isinstance(kind, dict):
        return any(map(_has_dates, kind.values()))
    return _has_dates(kind[0]) if isinstance(kind, list) else bool(kind == "date")
