"""All data sets of a run, each prepared by the same way: its format, its pipeline, its ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from attrs import define, field

from sftcore.data.format import RowReader, choose_format, reader_for, refuse_images
from sftcore.data.ledger import Ledger
from sftcore.data.prepare import Pipeline, columns_of, prepare, prepare_stream
from sftcore.data.render import Renderer
from sftcore.data.tokenize import Tokenizer
from sftcore.errors import ConflictError, DataError, OptionTypeError
from sftcore.registry import Bound
from sftcore.types import Example, Formatter, Row

if TYPE_CHECKING:
    from sftcore.run.setup import Setup


@define
class DataPreparation:
    """Prepares the data sets of one run.

    `ledgers` collects what became of the rows of map-style sets, `formats` which plugin read each set.
    """

    setup: Setup
    tokenizer: Any
    max_length: int | None
    formatting_func: Callable[[Row], Any] | None = None
    ledgers: list[Ledger] = field(factory=list)
    formats: dict[str, Bound] = field(factory=dict)

    def prepare_all(self, datasets: Any, name: str) -> Any:
        """One data set, or each member of a mapping of them."""
        if isinstance(datasets, Mapping):
            return {key: self.prepare(one, f"{name}[{key!r}]") for key, one in datasets.items()}
        return self.prepare(datasets, name)

    def prepare(self, dataset: Any, name: str) -> Any:
        """A `Dataset` or `IterableDataset` as token rows.

        Raises:
            OptionTypeError: it is neither.
            DataError, RowError: it cannot be read; with data set and row.
        """
        from datasets import Dataset, IterableDataset

        if not isinstance(dataset, (Dataset, IterableDataset)):
            raise OptionTypeError(
                f"expected a datasets.Dataset or IterableDataset, got {type(dataset).__name__}.",
                where=name,
                fix="Make one: Dataset.from_list(rows).",
            )
        if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
            raise DataError(
                "a data set with with_transform() cannot be prepared: the transform would be baked in.",
                where=name,
                fix='Pass dataset_kwargs={"skip_prepare_dataset": True} and let the transform return token rows.',
            )
        settings = self.setup.plan.settings
        pipeline = self.pipeline(columns_of(dataset), name)
        if isinstance(dataset, IterableDataset):
            stream = prepare_stream(dataset, pipeline)
            return stream.shuffle(seed=settings["seed"]) if settings.get("shuffle_dataset") else stream
        prepared, ledger = prepare(dataset, pipeline, name=name, num_proc=settings.get("dataset_num_proc"))
        self.ledgers.append(ledger)
        return prepared.shuffle(seed=settings["seed"]) if settings.get("shuffle_dataset") else prepared

    def pipeline(self, columns: list[str], name: str) -> Pipeline:
        """The way of a data set with these columns."""
        settings = self.setup.plan.settings
        return Pipeline(
            reader=self._reader(columns, name),
            renderer=Renderer(
                self.tokenizer,
                completion_only=settings.get("completion_only_loss"),
                assistant_only=bool(settings.get("assistant_only_loss")),
            ),
            tokenizer=Tokenizer(self.tokenizer),
            max_length=self.max_length,
            truncation=settings.get("truncation_mode") or "keep_start",
        )

    def _reader(self, columns: list[str], name: str) -> RowReader:
        settings = self.setup.plan.settings
        if self.formatting_func is not None and "input_ids" not in columns:
            refuse_images(columns, name)
            if settings.get("completion_only_loss"):
                raise ConflictError(
                    "a formatting_func makes one text of a row, so completion_only_loss=True finds no completion.",
                    fix="Drop one of the two, or use the prompt-completion format.",
                )
            return RowReader("formatting_func", _by_function(self.formatting_func), name)
        setup = self.setup
        bound = choose_format(setup.plan, setup.plugins, setup.catalog, setup.blocked, columns, name)
        self.formats[name] = bound
        return reader_for(bound, columns, name)


def _by_function(function: Callable[[Row], Any]) -> Formatter:
    def read(row: Row) -> list[Example]:
        found = function(row)
        texts = found if isinstance(found, (list, tuple)) else [found]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"it returned {type(found).__name__}, not a text or a list of texts")
        return [Example(text=text) for text in texts]

    return read
