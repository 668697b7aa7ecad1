"""Errors of data in the words of who wrote the recipe: the trainer knows data sets by argument, they know files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sftcore.core.errors import DataError, RowError, TemplateStoppedError
from sftcore.data.source.files import Files, scan
from sftcore.data.source.load import Source, explained

if TYPE_CHECKING:
    from sftcore.train.checked import Checked


@contextlib.contextmanager
def named_by_file(checked: Checked) -> Iterator[None]:
    """Around a run: a row is named by its file and its number there, and what breaks a stream by its line."""
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (DataError, TemplateStoppedError) as error:
        _rename(error, "train_dataset", checked.train)
        # a share that is held back comes from the training files, and its rows keep their numbers
        _rename(error, "eval_dataset", checked.eval or checked.train)
        raise
    except (pa.ArrowException, DatasetsError, UnicodeDecodeError) as error:
        if not checked.recipe.data.streaming or checked.train.files is None:
            raise
        raise explained(error, checked.train) from error


def _rename(error: DataError | TemplateStoppedError, argument: str, source: Source) -> None:
    if not error.where.startswith(argument):
        return
    row = error.row if isinstance(error, (RowError, TemplateStoppedError)) else None
    place = place_of(source.files, row) if row is not None else None
    error.where = place or error.where.replace(argument, source.label)


def place_of(files: Files | None, row: int) -> str | None:
    """File and number there of a row of several files, counted from 0; None where there is but one."""
    if files is None or len(files.paths) < 2:
        return None
    for path in files.paths:
        number = _num_rows(path, files.builder)
        if row < number:
            return f"{path} row {row}"
        row -= number
    return None


def _num_rows(path: Path, builder: str) -> int:
    if builder == "parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    return sum(1 for _ in scan(Files((path,), builder)))
