"""Prepares all data sets of a run, each with its format, its pipeline and its ledger."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field

from sftcore.chat.render import Renderer
from sftcore.chat.stops import turn_end
from sftcore.config.probe import probe_run
from sftcore.core.errors import ConflictError, DataError, OptionTypeError
from sftcore.core.registry import Bound
from sftcore.core.types import Row
from sftcore.data.format import RowReader, choose_format, filtered, reader_for, refuse_images
from sftcore.data.functions import by_function
from sftcore.data.images.expand import Expander, is_vision
from sftcore.data.images.reference import MAX_PIXELS
from sftcore.data.ledger import Ledger
from sftcore.data.nulls import meant_nulls
from sftcore.data.packing.blocks import PackingPlan
from sftcore.data.pipeline import Pipeline
from sftcore.data.ranks import Rank
from sftcore.data.source.load import numbers_of
from sftcore.data.store.cache import find_or_make, wrapped
from sftcore.data.store.keys import key_of
from sftcore.data.store.mapstyle import build
from sftcore.data.store.stream import columns_of, first_rows, prepare_stream
from sftcore.data.tokenize import Tokenizer
from sftcore.data.unread import said, unread_of
from sftcore.util.warned import warn

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset

    from sftcore.config.setup import Setup


PREDICTED = "test_dataset"
"""The name of the set whose rows are predicted: each by itself, and in the order in which they are given."""


@define
class DataPreparation:
    """Prepares the data sets of one run.

    processor: the model's processor, if it reads images.
    rank: the rank whose rows of a stream are prepared. shards: each such stream, beside the whole stream.
    shared: a folder of the run, through which one process shares sets that the cache does not keep.
    ledgers: what became of the rows of each map-style set. formats: the plugin that read each set.
    notes: what else the run reports. numberings: the numbers of each set's rows. label: the training set's name.
    given_tokens: the sets whose rows came as token ids. embeddings: how many tokens the model has, where it is known.
    """

    setup: Setup
    tokenizer: Any
    max_length: int | None
    formatting_func: Callable[[Row], Any] | None = None
    processor: Any = None
    rank: Rank = field(factory=Rank)
    shared: Path | None = None
    ledgers: list[Ledger] = field(factory=list)
    formats: dict[str, Bound] = field(factory=dict)
    notes: list[str] = field(factory=list)
    shards: list[tuple[IterableDataset, IterableDataset]] = field(factory=list)
    numberings: dict[str, Sequence[int] | None] = field(factory=dict)
    label: str = "the training data"
    given_tokens: set[str] = field(factory=set)
    embeddings: int | None = None

    def ledger_of(self, name: str) -> Ledger | None:
        """The ledger of the map-style set that was prepared under this name."""
        return next((one for one in self.ledgers if one.name == name), None)

    def prepare_all(self, datasets: Any, name: str) -> Any:
        """Prepare one data set, or each in a mapping of them."""
        if isinstance(datasets, Mapping):
            return {key: self.prepare(one, f"{name}[{key!r}]") for key, one in datasets.items()}
        return self.prepare(datasets, name)

    def prepare(self, dataset: Any, name: str) -> Any:
        """A `Dataset` or `IterableDataset` as token rows.

        Raises:
            OptionTypeError: it is neither of them.
            DataError, RowError: it cannot be read; names the data set and the row.
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
                "a data set with with_transform() cannot be prepared, because the transform would run only once.",
                where=name,
                fix='Pass dataset_kwargs={"skip_prepare_dataset": True} and let the transform return token rows.',
            )
        packing = self._packing(name)
        self.numberings[name] = numbering = numbers_of(dataset)
        columns = columns_of(dataset)
        if "input_ids" in columns:
            self.given_tokens.add(name)
        first = functools.partial(first_rows, dataset)
        pipeline = evolve(self.pipeline(columns, name, first), numbering=numbering, meant=meant_nulls(dataset.features))
        if name != PREDICTED and (left := said(unread_of(pipeline.reader, dataset))):
            self.notes.append(f"{name}: {left}")
        seed = None if name == PREDICTED else self._shuffle_seed
        if isinstance(dataset, IterableDataset):
            self.notes.append(f"{name}: a stream, which is prepared as it is read; its rows are not counted")
            source = dataset.shuffle(seed=seed) if packing and seed is not None else dataset
            stream = prepare_stream(source, pipeline, packing=packing, rank=self.rank)
            stream = stream.shuffle(seed=seed) if seed is not None else stream
            self.shards.append((stream, prepare_stream(source, pipeline, packing=packing)))
            return stream
        prepared = self._built(dataset, pipeline, packing, name)
        if name == PREDICTED:
            _say_what_is_left_out(self.ledgers[-1])
        return prepared.shuffle(seed=seed) if seed is not None else prepared

    def pipeline(self, columns: list[str], name: str, rows: Callable[[], Sequence[Row]] = tuple) -> Pipeline:
        """The pipeline for a data set with these columns; `rows` gives its first rows, to try suggestions on."""
        settings = self.setup.plan.settings
        packing = self._packing(name)
        return Pipeline(
            reader=self._reader(columns, name, rows),
            renderer=Renderer(
                self.tokenizer,
                completion_only=settings.get("completion_only_loss"),
                assistant_only=bool(settings.get("assistant_only_loss")),
                mask_style=settings.get("mask_style") or "turn",
                # the run will take the token that ends turns for the EOS that is missing
                text_end=turn_end(self.tokenizer) if self.tokenizer.eos_token is None else None,
            ),
            tokenizer=Tokenizer(self.tokenizer),
            # packing splits long documents itself, so they are not truncated before
            max_length=None if packing and packing.strategy != "bfd" else self.max_length,
            truncation=settings.get("truncation_mode") or "keep_start",
            expander=self._expander(packing, name),
            vocabulary=self._vocabulary() if "input_ids" in columns else None,
        )

    def _vocabulary(self) -> int:
        """How many tokens the model has: embeddings may be larger than the tokenizer's vocabulary."""
        config = probe_run(self.setup.plan.model).model_config or {}
        text = config.get("text_config") or {}
        sizes = [self.embeddings, config.get("vocab_size"), text.get("vocab_size"), len(self.tokenizer)]
        return max(size for size in sizes if isinstance(size, int))

    @property
    def _shuffle_seed(self) -> int | None:
        settings = self.setup.plan.settings
        return settings["seed"] if settings.get("shuffle_dataset") else None

    def _expander(self, packing: PackingPlan | None, name: str) -> Expander | None:
        settings = self.setup.plan.settings
        if self.processor is None or not is_vision(self.processor):
            return None
        if packing and packing.strategy != "bfd":
            raise ConflictError(
                f"packing_strategy {packing.strategy} splits documents, which could split their images.",
                where=name,
                fix="Use packing_strategy: bfd.",
            )
        folder, limit = settings.get("image_folder"), settings.get("max_image_pixels")
        return Expander(self.processor, folder or "", limit or MAX_PIXELS)

    def _packing(self, name: str) -> PackingPlan | None:
        """How this set is packed: an evaluation set by `eval_packing` if given, otherwise like the training set."""
        settings = self.setup.plan.settings
        wanted = settings.get("packing")
        if name.startswith("eval") and settings.get("eval_packing") is not None:
            wanted = settings["eval_packing"]
        if not wanted or name == PREDICTED:
            return None
        if self.max_length is None:
            raise ConflictError(
                "packing needs the length of a block, but max_length is None.",
                where=name,
                fix="Set max_length to the number of tokens in a block.",
            )
        return PackingPlan(settings.get("packing_strategy") or "bfd", self.max_length, self._shuffle_seed)

    def _built(self, dataset: Dataset, pipeline: Pipeline, packing: PackingPlan | None, name: str) -> Dataset:
        """The set from the cache, or prepared and put there."""
        settings = self.setup.plan.settings

        def make(folder: Path | None) -> tuple[pa.Table, Ledger]:
            num_proc = settings.get("dataset_num_proc")
            return build(dataset, pipeline, name=name, packing=packing, num_proc=num_proc, folder=folder)

        key = None
        if settings.get("dataset_cache", True):
            key = key_of(
                dataset,
                format=self.formats.get(name) or self.formatting_func,
                tokenizer=self.tokenizer,
                processor=self.processor if is_vision(self.processor) else None,
                settings=settings,
                max_length=self.max_length,
                packing=f"{packing.strategy}, shuffle seed {packing.shuffle_seed}" if packing else "",
                numbering=pipeline.numbering,
                wrappers=[one for one in self.setup.plugins.bound if one.wraps("make_formatter")],
            )
            if key is None:
                self.notes.append(f"{name}: not cached, because the formatting function has no stable hash")
        if key is None and self.shared is None:
            table, ledger = make(None)
            self.ledgers.append(ledger)
            return wrapped(table)
        if key is None:
            own = {"set": name, "number": str(len(self.ledgers))}
            found, ledger, _ = find_or_make(own, make, folder=self.shared)
            note = "prepared by one process for all processes of this machine, and not kept"
        else:
            found, ledger, note = find_or_make(key, make)
        self.notes.append(f"{name}: {note}")
        self.ledgers.append(evolve(ledger, name=name))
        return found

    def _reader(self, columns: list[str], name: str, rows: Callable[[], Sequence[Row]]) -> RowReader:
        settings = self.setup.plan.settings
        if self.formatting_func is not None and "input_ids" not in columns:
            refuse_images(columns, name)
            reader = RowReader("formatting_func", by_function(self.formatting_func), name)
            return filtered(reader, columns, settings)
        setup = self.setup
        bound = choose_format(
            setup.plan,
            setup.plugins,
            setup.catalog,
            setup.blocked,
            columns,
            name,
            rows=rows,
            has_template=bool(self.tokenizer.chat_template),
            in_python=True,
        )
        self.formats[name] = bound
        return reader_for(bound, columns, name, setup.plugins, settings)


def _say_what_is_left_out(ledger: Ledger) -> None:
    for reason, rows in ledger.dropped_rows.items():
        which = f"{', '.join(map(str, rows[:5]))}{', …' if len(rows) > 5 else ''}"
        warn(f"predictions leave out {len(rows):,} rows ({which}): {reason}")
