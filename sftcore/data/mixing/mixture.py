"""Several data sets to train or evaluate on as one, as Python users and recipes give them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any, get_args

from attrs import evolve, field, frozen

from sftcore.config.data.section import Stop
from sftcore.config.plugins.bound import bind
from sftcore.config.selections import parse_choice
from sftcore.core.errors import DataError, OptionTypeError, nearest
from sftcore.core.registry import ActivePlugins, Bound
from sftcore.core.types import AUTO, Plan, Selection
from sftcore.data.rules.numbers import taken

if TYPE_CHECKING:
    from sftcore.config.setup import Setup


def _as_selection(value: Any) -> Selection | None:
    if value is None or isinstance(value, Selection):
        return value
    found = parse_choice("format", value, where="DataSource")
    return found[0] if found else None


@frozen
class DataSource:
    """One source of a mixture.

    Args:
        dataset: a `Dataset` or `IterableDataset`, in any format that an installed plugin reads.
        name: tells it apart in reports and errors; its number by default.
        weight: its share of the mixture, in proportion to the weights of the others; 1 where only others have one.
            Where none has, the sources are read one after another.
        rows: how many of its rows are read, from the first on; None is all of them.
        format: the format that reads its rows instead of the run's: a name, or `{name: {option: value}}`.
        image_folder: from where relative paths of its images begin; "" is as the run says.

    Raises:
        OptionTypeError, DataError: a value is of another kind than these.
    """

    dataset: Any
    name: str = ""
    weight: float | None = field(default=None, kw_only=True)
    rows: int | None = field(default=None, kw_only=True)
    format: Selection | None = field(default=None, kw_only=True, converter=_as_selection)
    image_folder: str = field(default="", kw_only=True)

    def __attrs_post_init__(self) -> None:
        where = f"DataSource {self.name}".strip()
        if not isinstance(self.name, str):
            raise OptionTypeError(f"name is a text, got {self.name!r}.", where=where)
        for name, kind in (("weight", (int, float)), ("rows", int)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise OptionTypeError(f"{name} is a number, got {value!r}.", where=where)
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise DataError(f"a weight is a number above 0, got {self.weight:g}.", where=where, fix="Drop the source.")
        if self.rows is not None and self.rows < 1:
            raise DataError(f"rows is at least 1, got {self.rows}.", where=where, fix="Leave it out to read all rows.")

    def taken(self) -> Any:
        """The rows that are read of its data set."""
        if self.rows is None:
            return self.dataset
        return taken(self.dataset, range(self.rows))


def _as_sources(given: Any) -> tuple[DataSource, ...]:
    if isinstance(given, Mapping) or not isinstance(given, (list, tuple)):
        what = f"sources are a list, got {type(given).__name__}."
        raise OptionTypeError(what, where="Mixture", fix='Write Mixture([DataSource(rows, "name", weight=2), …]).')
    return tuple(one if isinstance(one, DataSource) else DataSource(one) for one in given)


@frozen
class Mixture:
    """Several sources as one data set: `SFTTrainer(train_dataset=Mixture([…]))`.

    Args:
        sources: `DataSource`s, or data sets alone.
        stop: with weights, where an epoch ends: when the "first" source has no row left, so that no row is repeated;
            or when "all" have been read, so that none is left out.

    Raises:
        OptionTypeError, DataError: there are no sources, or two of one name.
    """

    sources: tuple[DataSource, ...] = field(converter=_as_sources)
    stop: Stop = "first"

    def __attrs_post_init__(self) -> None:
        if not self.sources:
            raise DataError("the mixture has no sources.", where="Mixture", fix="Give at least one data set.")
        names = [one.name for one in self.sources if one.name]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f'two sources have the name "{twice}".', where="Mixture", fix="Give each its own.")
        if self.stop not in get_args(Stop):
            what = f'stop is "first" or "all", got {self.stop!r}.{nearest(str(self.stop), get_args(Stop))}'
            raise OptionTypeError(what, where="Mixture")

    @property
    def weights(self) -> tuple[float | None, ...]:
        """The sources' weights."""
        return tuple(one.weight for one in self.sources)

    def names_in(self, name: str) -> list[str]:
        """What each source is called in a set of this name; a single one is called as the set.

        >>> Mixture([DataSource(None, "code"), DataSource(None)]).names_in("train_dataset")
        ["train_dataset['code']", 'train_dataset[1]']
        """
        if len(self.sources) == 1:
            return [name]
        return [f"{name}[{one.name or number!r}]" for number, one in enumerate(self.sources)]


def as_mixture(dataset: Any) -> Mixture | None:
    """The mixture that was given, also as a list of data sets; None where it is something else."""
    if isinstance(dataset, Mixture):
        return dataset
    if isinstance(dataset, DataSource):
        return Mixture((dataset,))
    if isinstance(dataset, (list, tuple)) and all(_may_be_source(one) for one in dataset):
        return Mixture(dataset)
    return None


def _may_be_source(one: Any) -> bool:
    return isinstance(one, DataSource) or hasattr(one, "column_names")


def has_length(dataset: Any) -> bool:
    """Whether it is known how many rows there are: not of a stream, nor of a mixture of streams."""
    mixture = as_mixture(dataset)
    sets = [dataset] if mixture is None else [one.dataset for one in mixture.sources]
    return all(isinstance(one, Sized) for one in sets)


def with_format(setup: Setup, selection: Selection | None) -> Setup:
    """The run with this format in the place of its own; `auto` leaves it to the columns.

    Raises:
        SFTCoreError: the plugin cannot be had, or its options are wrong.
    """
    if selection is None:
        return setup
    if selection.name == AUTO:
        others = [one for one in setup.plugins.bound if one.selection.kind != "format"]
        return evolve(setup, plugins=ActivePlugins(others, setup.plugins.yielded))
    return evolve(setup, plugins=setup.plugins.having(bound_format(setup, selection)))


def bound_format(setup: Setup, selection: Selection) -> Bound:
    """The plugin of a source's own format, with its options."""
    plan: Plan = setup.plan
    return bind(selection, setup.catalog, setup.blocked, plan.settings)
