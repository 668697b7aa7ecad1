"""What a recipe says of its data: the sources of the rows, and the evaluation sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from attrs import evolve, field, frozen

from sftcore.core.types import Selection

Paths: TypeAlias = "str | tuple[str, ...]"
Stop: TypeAlias = Literal["first", "all"]
SampleBy: TypeAlias = Literal["line", "paragraph", "document"]


@frozen
class SourceSection:
    """One source of rows: files of one type, a folder or a hub id, and how they are read.

    `name` tells it apart in reports and errors, and is its path where the recipe gives none (`named` is then False).
    `weight` is its share of a mixture, in proportion to the weights of the others. `rows` is how many of its rows are
    read, from the first on; None is all of them. `columns` are those that are kept; None is all. `sample_by` says what
    a row of a .txt file is; None is a line. `format` reads its rows instead of the run's format. `place` is where the
    recipe says so.
    """

    path: Paths
    name: str = ""
    format: Selection | None = None
    weight: float | None = None
    rows: int | None = None
    columns: tuple[str, ...] | None = None
    sample_by: SampleBy | None = None
    config: str | None = None
    split: str = "train"
    place: str = ""
    named: bool = False

    def labelled(self, files: str) -> str:
        """How the source is called in reports and errors, given how its files are called.

        >>> SourceSection("b.parquet", "code", named=True).labelled("b.parquet")
        'code: b.parquet'
        """
        return f"{self.name}: {files}" if self.named else files


@frozen
class DataSection:
    """Where rows come from.

    `sources` are read one after another, or mixed where one of them has a weight: `stop` then says whether an epoch
    ends when the first of them has no row left, or when all of them have been read. `eval_sets` are the evaluation
    sets by name; the name is empty where there is only one. `eval_fraction` is the share of the training rows to
    evaluate on instead (above 0, below 1), and `eval_rows` their number, chosen by the run's seed; each excludes the
    other and `eval`. `streaming` reads training
    rows as they are needed, but evaluation rows in advance.
    """

    sources: tuple[SourceSection, ...] = ()
    eval_sets: Mapping[str, tuple[SourceSection, ...]] = field(factory=dict)
    eval_fraction: float | None = None
    streaming: bool = False
    stop: Stop = "first"
    eval_rows: int | None = None

    @property
    def held_back(self) -> float | int | None:
        """The share (float) or the number (int) of training rows that are evaluated on instead; None for none."""
        return self.eval_rows if self.eval_fraction is None else float(self.eval_fraction)

    @property
    def evaluates(self) -> bool:
        """Whether there are rows to evaluate on."""
        return bool(self.eval_sets) or self.held_back is not None

    @property
    def train(self) -> Paths:
        """The paths to train on."""
        return _paths_of(self.sources)

    @property
    def eval(self) -> Paths | None:
        """The paths to evaluate on; None where there are none."""
        return _paths_of([one for found in self.eval_sets.values() for one in found]) if self.eval_sets else None

    @property
    def config(self) -> str | None:
        """The configuration of the first source."""
        return self.sources[0].config

    @property
    def eval_sources(self) -> tuple[SourceSection, ...]:
        """The sources of all evaluation sets as one: of several, each under the name of its set, and none weighted."""
        if len(self.eval_sets) < 2:
            return next(iter(self.eval_sets.values()), ())
        named = [
            (name if len(found) == 1 and not one.named else f"{name}/{one.name}", one)
            for name, found in self.eval_sets.items()
            for one in found
        ]
        return tuple(evolve(one, name=name, named=True, weight=None) for name, one in named)

    @property
    def every(self) -> Iterator[SourceSection]:
        """Every source, those to train on first."""
        yield from self.sources
        for found in self.eval_sets.values():
            yield from found


def _paths_of(sources: Sequence[SourceSection]) -> Paths:
    if len(sources) == 1:
        return sources[0].path
    return tuple(path for one in sources for path in ([one.path] if isinstance(one.path, str) else one.path))
