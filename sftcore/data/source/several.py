"""The sources of a recipe's data sets: read for a first check, and loaded as one data set or as a mixture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from sftcore.config.data.section import DataSection, SourceSection, Stop
from sftcore.core.errors import DataError, SFTCoreError, nearest, raise_all
from sftcore.core.types import Problem
from sftcore.data.mixing.mixture import DataSource, Mixture, with_format
from sftcore.data.rules.numbers import NO_END, taken, with_numbers
from sftcore.data.source.files import Files, local_files
from sftcore.data.source.load import SAMPLE, Source, inspect, load, paths_of, split_off
from sftcore.data.source.slices import says_nothing, window_of
from sftcore.util.warned import warn

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from sftcore.config.setup import Setup
    from sftcore.core.types import Plan, Probe


@frozen
class GivenSource:
    """A source of a recipe: what the recipe says of it, its files, and which of their rows are read; None is all."""

    section: SourceSection
    source: Source
    window: range | None = None

    @property
    def label(self) -> str:
        """How reports and errors call it."""
        return self.section.labelled(self.source.label)

    def record(self) -> dict[str, Any]:
        """What a manifest says of it."""
        section, files = self.section, self.source.files
        paths = [str(path) for path in files.paths] if files else []
        said = {"name": section.name, "path": section.path, "weight": section.weight, "rows": section.rows}
        said |= {"split": section.split} if self.window is not None else {}
        return {**said, "format": section.format and section.format.label, "files": paths}


@frozen
class GivenSet:
    """A data set of a recipe, of one source or several."""

    sources: tuple[GivenSource, ...]
    stop: Stop = "first"

    @property
    def label(self) -> str:
        """How reports and errors call it as a whole."""
        return ", ".join(one.label for one in self.sources)

    @property
    def paths(self) -> list[Path]:
        """All its local files, each once."""
        return list(dict.fromkeys(paths_of(*(one.source for one in self.sources))))

    def names_in(self, name: str) -> dict[str, GivenSource]:
        """Its sources by what they are called in a trainer's set of this name."""
        names = Mixture([DataSource(None, one.section.name) for one in self.sources]).names_in(name)
        return dict(zip(names, self.sources, strict=True))


def inspect_set(sections: Sequence[SourceSection], setup: Setup, stop: Stop) -> GivenSet:
    """Read the first rows of every source, each with its own format, using only the standard library.

    Raises:
        SFTCoreError: what is wrong with a source, or with several of them.
    """
    found, errors = [], []
    for section in sections:
        try:
            found.append(_inspected(section, setup))
        except SFTCoreError as error:
            errors.append(error)
    raise_all(errors)
    return GivenSet(tuple(found), stop)


def given_set(sections: Sequence[SourceSection], stop: Stop) -> GivenSet:
    """The set of these sources, none of whose rows is read.

    Raises:
        DataError: a file does not exist, or cannot be one.
    """
    sources = []
    for section in sections:
        files = local_files(section.path, section.sample_by)
        label = files.label if files else str(section.path)
        sources.append(GivenSource(section, Source(label, files), window_in(section, files)))
    return GivenSet(tuple(sources), stop)


def window_in(section: SourceSection, files: Files | None) -> range | None:
    """The rows that the source's slice takes of its local files; None where there is no slice.

    Raises:
        DataError: the slice is none, or takes no row.
    """
    if files is None:
        return None
    ignored = [] if says_nothing(section.split) else [f'split "{section.split}"']
    ignored += [f'config "{section.config}"'] if section.config is not None else []
    if ignored:
        are = "are" if len(ignored) > 1 else "is"
        warn(f"{files.label}: {' and '.join(ignored)} {are} not read, because local files have neither.")
    return window_of(section.split, files, section.place or files.label)


def _inspected(section: SourceSection, setup: Setup) -> GivenSource:
    own = with_format(setup, section.format)
    limit = SAMPLE if section.rows is None else min(SAMPLE, section.rows)
    try:
        window = window_in(section, local_files(section.path, section.sample_by))
        source = inspect(
            section.path, own, limit=limit, keep=section.columns, sample_by=section.sample_by, window=window
        )
    except DataError as error:
        error.where = section.labelled(error.where)
        raise
    return GivenSource(section, source, window)


def problems_of_formats(data: DataSection, setup: Setup, plan: Plan, probe: Probe) -> Iterator[Problem]:
    """What the formats of single sources find wrong, as those of the run do for themselves."""
    for section in data.every:
        if section.format is None:
            continue
        plugins = with_format(setup, section.format).plugins
        for one in plugins.bound:
            if one.selection.kind == "format" and one.implements("check"):
                for some in plugins.ask(one, "check", plan=plan, probe=probe):
                    yield from (evolve(problem, where=problem.where or section.place) for problem in some)


# --- Loading ----------------------------------------------------------------------------------------------------------
def load_set(given: GivenSet, *, streaming: bool = False) -> Any:
    """The rows of a set: a data set, or a mixture where there are several sources, or one with a format of its own.

    Raises:
        DataError: a source cannot be read; names its file, and the line or row.
    """
    loaded = [DataSource(_rows(one, streaming), one.section.name, **_kept(one)) for one in given.sources]
    if len(loaded) == 1 and loaded[0].format is None:
        return loaded[0].dataset
    return Mixture(loaded, given.stop)


def split_set(rows: Any, size: float, seed: int) -> tuple[Any, Any]:
    """Rows to train on, and a share (float) or number (int) of them to evaluate on.

    Of a mixture, the same share of every source is held back; a number is shared out among them by their rows.

    Raises:
        DataError: a source has too few rows.
    """
    if not isinstance(rows, Mixture):
        return split_off(rows, size, seed)
    train, held = [], []
    counts = [len(one.dataset) for one in rows.sources]
    sizes = shared_out(size, counts) if isinstance(size, int) else [size] * len(counts)
    for one, part in zip(rows.sources, sizes, strict=True):
        if not part:
            train.append(one)
            continue
        try:
            kept, back = split_off(one.dataset, part, seed)
        except DataError as error:
            error.where = error.where or one.name
            raise
        train.append(evolve(one, dataset=kept))
        held.append(evolve(one, dataset=back, weight=None))
    return evolve(rows, sources=train), Mixture(held)


def shared_out(size: int, counts: Sequence[int]) -> list[int]:
    """How many of `size` rows each source gives, by its share of all rows: the largest remainders are rounded up.

    >>> shared_out(5, [60, 30, 9])
    [3, 2, 0]

    Raises:
        DataError: there are not so many, if each source keeps one.
    """
    whole = sum(counts)
    if size > whole - len(counts):
        what = f"eval_rows is {size:,}, and there are {whole:,} rows in {len(counts)} sources, each of which keeps one."
        raise DataError(what, fix="Hold fewer back.")
    found = [min(size * count // whole, count - 1) for count in counts]
    by_rest = sorted(range(len(counts)), key=lambda i: -(size * counts[i] % whole))
    for i in itertools.cycle(by_rest):
        if sum(found) == size:
            return found
        found[i] += found[i] < counts[i] - 1
    return found


def _kept(one: GivenSource) -> dict[str, Any]:
    """What a source says of itself that is not a matter of reading its files."""
    first = one.source.files.paths[0] if one.source.files else None
    folder = str(first.resolve().parent) if first is not None and first.is_file() else ""
    return {"weight": one.section.weight, "format": one.section.format, "image_folder": folder}


def _rows(one: GivenSource, streaming: bool) -> Dataset | IterableDataset:
    section, files = one.section, one.source.files
    # datasets 4 skips rows of such a stream in each of its parts
    within = one.window if streaming and files is not None and files.builder == "arrow" else None
    try:
        rows = load(one.source, section, section.split, streaming=streaming, window=within)
        if section.columns is not None:
            rows = _with_columns(rows, section, one.label)
    except DataError as error:
        if not error.where.startswith(one.label):
            error.where = section.labelled(error.where)
        raise
    if within is not None:
        rows = with_numbers(rows, range(within.start, NO_END))
    elif one.window is not None:
        rows = taken(rows, one.window)
    return DataSource(rows, rows=section.rows).taken()


def _with_columns(rows: Any, section: SourceSection, label: str) -> Any:
    known = rows.column_names
    missing = [name for name in section.columns or () if known is not None and name not in known]
    if missing:
        raise DataError(
            f'there is no column "{missing[0]}".{nearest(missing[0], known)}',
            where=label,
            fix=f"The columns are: {', '.join(known)}.",
        )
    return rows.select_columns(list(section.columns or ()))


# --- Errors -----------------------------------------------------------------------------------------------------------
def rename(error: Any, sets: Mapping[str, GivenSet], place_of: Any) -> None:
    """Name a row in the words of the recipe: its source, its file and its number there.

    Args:
        error: whose `where` begins with the name of a set in the trainer, such as `train_dataset['code'] row 3`.
        sets: the sets by their names in the trainer.
        place_of: file and number there of a row of several files, None where there is but one.
    """
    sources = {name: one for set_name, given in sets.items() for name, one in given.names_in(set_name).items()}
    for name in sorted(sources, key=len, reverse=True):
        if not error.where.startswith(name):
            continue
        one = sources[name]
        row = getattr(error, "row", None)
        place = place_of(one.source.files, row) if row is not None else None
        rest = error.where.removeprefix(name)
        error.where = one.section.labelled(place) if place else f"{one.label}{rest}"
        return
    for name, given in sets.items():
        if error.where.startswith(name):
            error.where = error.where.replace(name, given.label, 1)
            return
