"""Errors of data in the words of who wrote the recipe: the trainer knows data sets by argument, they know files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from attrs import evolve

from sftcore.core.errors import DataError, TemplateStoppedError
from sftcore.data.source.files import Files
from sftcore.data.source.load import explained
from sftcore.data.source.several import GivenSet, GivenSource, rename
from sftcore.data.source.slices import num_rows

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
        rename(error, sets_by_name(checked), place_of)
        raise
    except (pa.ArrowException, DatasetsError, UnicodeDecodeError) as error:
        local = [one for one in checked.train.sources if one.source.files is not None]
        if not checked.recipe.data.streaming or not local:
            raise
        raise _explained(error, local) from error


def sets_by_name(checked: Checked) -> dict[str, GivenSet]:
    """The data sets of a run by their names in its trainer."""
    named = {f"eval_dataset[{name!r}]" if name else "eval_dataset": one for name, one in checked.eval.items()}
    # a share that is held back comes from the training files, and its rows keep their numbers
    return {"train_dataset": checked.train, **(named or {"eval_dataset": checked.train})}


def sources_by_name(checked: Checked) -> dict[str, GivenSource]:
    """The sources of a run by their names in its trainer; rows that are held back have no files of their own."""
    sets = {name: one for name, one in sets_by_name(checked).items() if checked.eval or name == "train_dataset"}
    return {name: one for set_name, given in sets.items() for name, one in given.names_in(set_name).items()}


def _explained(error: Exception, sources: Sequence[GivenSource]) -> DataError:
    """The error of a stream with its source and, if it can be found, its line there."""
    for one in sources:
        try:
            found = explained(error, one.source)
        except DataError as located:
            located.where = one.section.labelled(located.where)
            return located
    found.where = ", ".join(one.label for one in sources)
    return found


def place_of(files: Files | None, row: int) -> str | None:
    """File and number there of a row of several files, counted from 0; None where there is but one."""
    if files is None or len(files.paths) < 2:
        return None
    for path in files.paths:
        number = num_rows(evolve(files, paths=(path,)))
        if row < number:
            return f"{path} row {row}"
        row -= number
    return None
