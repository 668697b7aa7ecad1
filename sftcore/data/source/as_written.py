"""Whether Arrow's reader of JSON kept the values of a whole file, of which the first rows alone were looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

MEANT = 2
"""From this depth on, as in the arguments of a call or the schema of a tool, a null is one that somebody meant, and a
struct of Arrow would not tell it from those that it fills in. In messages and calls themselves a null says nothing."""
ARGUMENTS = frozenset(("arguments", "args", "parameters", "input_schema"))
"""Keys whose mappings somebody has written whole, however deep they lie."""
_WAS_A_DATE = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?Z?$"
"""What a text looks like that Arrow took for a time in one of its blocks, and wrote as a text again."""


def is_as_written(loaded: Dataset, sample: Sequence[Mapping[str, Any]]) -> bool:
    """Whether what `datasets` has loaded is what stands in the file, if that holds of the sample, its first rows.

    A column or key that the sample lacks, or one of another type, may hold texts that became times, or fillings in the
    place of nulls. Where all types are the sample's, structs may have been filled, and whole numbers be fractions.
    """
    if loaded.features != _features_of(sample):
        return False
    table = loaded.data
    return all(_keeps(chunk, 0) for name in table.column_names for chunk in table.column(name).chunks)


def _features_of(rows: Sequence[Mapping[str, Any]]) -> Any:
    import datasets
    import pyarrow as pa

    columns = dict.fromkeys(key for row in rows for key in row)
    try:
        fields = [pa.field(column, pa.array([row.get(column) for row in rows]).type) for column in columns]
        return datasets.Features.from_arrow_schema(pa.schema(fields))
    except (pa.ArrowException, OverflowError, NotImplementedError):
        return None


def _keeps(values: Any, depth: int) -> bool:
    """Whether this part of a column is what was written; `depth` is how many mappings it lies in."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_struct(kind):
        parts = values.flatten()
        if depth >= MEANT and any(_has_nulls(part, values) for part in parts):
            return False
        names = [field.name for field in kind]
        return all(
            _keeps(part, MEANT if name in ARGUMENTS else depth + 1) for name, part in zip(names, parts, strict=True)
        )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _keeps(values.flatten(), depth)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return not pc.any(pc.match_substring_regex(values, _WAS_A_DATE)).as_py()
    if pa.types.is_floating(kind) and depth >= MEANT:
        return not pc.any(pc.equal(pc.floor(values), values)).as_py()
    return True


def _has_nulls(part: Any, whole: Any) -> bool:
    """Whether a key has nulls in mappings that are there."""
    return bool(part.null_count > whole.null_count)
