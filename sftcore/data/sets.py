"""Prepares all data sets of a run, each with its format, its pipeline and its ledger."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field

from sftcore.chat.markers.answers import AnswerMarkers
from sftcore.chat.render import Renderer
from sftcore.chat.stops import turn_end
from sftcore.config.probe import probe_run
from sftcore.core.errors import ConflictError, DataError, OptionTypeError
from sftcore.core.registry import Bound
from sftcore.core.types import Row, Selection
from sftcore.data.format import RowReader, choose_format, filtered, reader_for, refuse_images
from sftcore.data.functions import by_function
from sftcore.data.images.expand import Expander, is_vision
from sftcore.data.images.reference import MAX_PIXELS
from sftcore.data.ledger import Ledger
from sftcore.data.mixing.mixed import Mixed
from sftcore.data.mixing.mixture import DataSource, Mixture, as_mixture, with_format
from sftcore.data.mixing.prepared import prepared_mixture
from sftcore.data.nulls import meant_nulls
from sftcore.data.packing.blocks import PackingPlan
from sftcore.data.pipeline import Pipeline
from sftcore.data.ranks import Rank
from sftcore.data.rules.long_rows import LongRule, choice_of
from sftcore.data.rules.numbers import numbers_of
from sftcore.data.rules.system_prompt import NOT_ADDED
from sftcore.data.store.beside import other_columns, refuse_no_place, with_columns
from sftcore.data.store.built import built
from sftcore.data.store.cache import Key
from sftcore.data.store.counts import StreamCounts
from sftcore.data.store.stream import columns_of, first_rows, prepare_stream
from sftcore.data.tokenize import Tokenizer
from sftcore.data.unread import said, unread_of
from sftcore.util.warned import warn

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from sftcore.config.setup import Setup
    from sftcore.data.source.files import Files


PREDICTED = "test_dataset"
"""The name of the set whose rows are predicted: each by itself, and in the order in which they are given."""


@define
class DataPreparation:
    """Prepares the data sets of one run.

    processor: the model's processor, if it reads images.
    rank: the rank whose rows of a stream are prepared. shards: each such stream, beside the whole stream, and beside
    the same rows with their numbers, by which the predictions of several ranks are put in order (None without order).
    shared: a folder of the run, through which one process shares sets that the cache does not keep.
    ledgers: what became of the rows of each map-style set. streams: the same of the rows that were read of a stream.
    formats: the plugin that read each set.
    notes: what else the run reports. numberings: the numbers of each set's rows.
    labels: what the user calls sets, where that is not by their argument. files: those that sets were read from, where
    they are local. mixed: the sets that are mixtures.
    beside: the columns that each set's rows have for the run's own code.
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
    streams: dict[str, StreamCounts] = field(factory=dict)
    formats: dict[str, Bound] = field(factory=dict)
    notes: list[str] = field(factory=list)
    shards: list[tuple[IterableDataset, IterableDataset, IterableDataset | None]] = field(factory=list)
    numberings: dict[str, Sequence[int] | None] = field(factory=dict)
    labels: dict[str, str] = field(factory=dict)
    files: dict[str, Files | None] = field(factory=dict)
    mixed: dict[str, Mixed] = field(factory=dict)
    beside: dict[str, tuple[str, ...]] = field(factory=dict)
    given_tokens: set[str] = field(factory=set)
    embeddings: int | None = None
    keys: dict[str, Key | None] = field(factory=dict)

    def ledger_of(self, name: str) -> Ledger | None:
        """The ledger of the map-style set that was prepared under this name."""
        return next((one for one in self.ledgers if one.name == name), None)

    def prepare_all(self, datasets: Any, name: str) -> Any:
        """Prepare one data set, or each in a mapping of them."""
        if isinstance(datasets, Mapping):
            return {key: self.prepare(one, f"{name}[{key!r}]") for key, one in datasets.items()}
        return self.prepare(datasets, name)

    def prepare(self, dataset: Any, name: str) -> Any:
        """A `Dataset`, an `IterableDataset` or a `Mixture` of them as token rows.

        Raises:
            OptionTypeError: it is none of them.
            DataError, RowError: it cannot be read; names the data set and the row.
        """
        mixture = as_mixture(dataset) or Mixture((DataSource(dataset),))
        self.mixed.pop(name, None)
        if len(mixture.sources) > 1:
            return prepared_mixture(self, mixture, name)
        return self.prepared_source(mixture.sources[0], name)

    def prepared_source(self, source: DataSource, name: str, place: int | None = None) -> Any:
        """The token rows of one source, packed and shuffled unless it has a place among several."""
        in_mixture = place is not None
        from datasets import IterableDataset

        self._refuse_what_it_is(source.dataset, name)
        dataset = source.taken()
        packing = self.packing_of(name)
        self.numberings[name] = numbering = numbers_of(dataset)
        columns = columns_of(dataset)
        if "input_ids" in columns:
            self.given_tokens.add(name)
            if self.setup.plan.settings.get("response_marker"):
                raise ConflictError(
                    "response_marker finds answers in texts, and these rows are tokens already.",
                    where=name,
                    fix='Drop it, and mask what is not to be trained with -100 in "labels".',
                )
            if self.setup.plan.settings.get("system_prompt"):
                self.notes.append(f"{name}: {NOT_ADDED}")
        pipeline = self.pipeline(columns, name, source, functools.partial(first_rows, dataset))
        pipeline = evolve(pipeline, numbering=numbering, meant=meant_nulls(dataset.features))
        beside = self._beside(columns, packing, name, in_mixture=in_mixture)
        unread = {} if name.startswith(PREDICTED) else unread_of(pipeline.reader, dataset)
        if left := said({column: value for column, value in unread.items() if column not in beside}):
            self.notes.append(f"{name}: {left}")
        seed = self.shuffle_seed_of(name)
        if not isinstance(dataset, IterableDataset):
            with pipeline.reader.answering():
                prepared = built(self, dataset, pipeline, packing, name, in_mixture=in_mixture)
            prepared = self._with_columns(prepared, dataset, beside, name)
            if name.startswith(PREDICTED):
                _say_what_is_left_out(self.ledgers[-1])
            return prepared.shuffle(seed=seed) if seed is not None and not in_mixture else prepared
        raw = dataset.shuffle(seed=seed) if (packing or in_mixture) and seed is not None else dataset
        workers = self.setup.plan.settings.get("dataloader_num_workers") or 0
        self.streams[name] = counts = StreamCounts.of(name, pipeline.reader.label, pipeline.reasons, workers)
        numbered = None
        if self.rank.count > 1 and (in_mixture or packing is None):
            numbered = prepare_stream(raw, pipeline, rank=self.rank, beside=beside, numbered=place or 0)
        accounted = (place or 0) if raw is dataset and self._accounts_for(name, raw, workers) else None
        if in_mixture:
            own = prepare_stream(raw, pipeline, rank=self.rank, counts=counts, accounted=accounted)
            return own, prepare_stream(raw, pipeline), numbered
        self.notes.append(f"{name}: a stream, which is prepared and counted as it is read")
        prepared_by = functools.partial(prepare_stream, rank=self.rank, counts=counts, accounted=accounted)
        stream = prepared_by(raw, pipeline, packing=packing, beside=beside)
        stream = stream.shuffle(seed=seed) if seed is not None else stream
        self.shards.append((stream, prepare_stream(raw, pipeline, packing=packing, beside=beside), numbered))
        return stream

    def _accounts_for(self, name: str, stream: IterableDataset, workers: int) -> bool:
        """Whether the losses of a stream's rows are collected: of one to train on, whose rows have one numbering."""
        wanted = self.setup.plan.settings.get("row_losses", True)
        return bool(wanted) and name.startswith("train_dataset") and (workers < 2 or stream.num_shards == 1)

    def _beside(
        self, columns: list[str], packing: PackingPlan | None, name: str, *, in_mixture: bool
    ) -> tuple[str, ...]:
        """The raw columns that are kept beside the tokens of a row."""
        found = self.beside[name] = other_columns(columns, self.setup.plan.settings)
        if not packing and not in_mixture:
            return found
        why = "rows are packed" if packing else "rows come from a mixture"
        refuse_no_place(found, self.setup.plan, why, where=name)
        return ()

    def _with_columns(self, prepared: Dataset, raw: Dataset, columns: tuple[str, ...], name: str) -> Dataset:
        ledger = self.ledgers[-1]
        if columns and not ledger.one_each:
            refuse_no_place(columns, self.setup.plan, "rows give several examples each", where=name)
            return prepared
        return with_columns(prepared, raw, columns, self.numberings[name], ledger) if columns else prepared

    def _refuse_what_it_is(self, dataset: Any, name: str) -> None:
        from datasets import Dataset, IterableDataset

        if not isinstance(dataset, (Dataset, IterableDataset)):
            raise OptionTypeError(
                f"expected a datasets.Dataset or IterableDataset, got {type(dataset).__name__}.",
                where=name,
                fix=_to_make_one(dataset),
            )
        if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
            raise DataError(
                "a data set with with_transform() cannot be prepared, because the transform would run only once.",
                where=name,
                fix='Pass dataset_kwargs={"skip_prepare_dataset": True} and let the transform return token rows.',
            )

    def pipeline(
        self,
        columns: list[str],
        name: str,
        source: DataSource | None = None,
        rows: Callable[[], Sequence[Row]] = tuple,
    ) -> Pipeline:
        """The pipeline for a data set with these columns, read as this source says.

        `rows` gives its first rows, to try suggestions on.
        """
        settings = self.setup.plan.settings
        packing = self.packing_of(name)
        reader = self._reader(columns, name, source.format if source else None, rows)
        may_give_tokens = "input_ids" in columns or not reader.is_own
        return Pipeline(
            reader=reader,
            renderer=Renderer(
                self.tokenizer,
                completion_only=settings.get("completion_only_loss"),
                assistant_only=bool(settings.get("assistant_only_loss")),
                mask_style=settings.get("mask_style") or "turn",
                # the run will take the token that ends turns for the EOS that is missing
                text_end=turn_end(self.tokenizer) if self.tokenizer.eos_token is None else None,
                answers=answer_markers(settings),
            ),
            tokenizer=Tokenizer(self.tokenizer),
            # packing splits long documents itself, so they are not truncated before
            max_length=None if packing and packing.strategy != "bfd" else self.max_length,
            truncation=settings.get("truncation_mode") or "keep_start",
            expander=self._expander(packing, name, source.image_folder if source else ""),
            vocabulary=self._vocabulary() if may_give_tokens else None,
            long_rows=self._long_rows(name),
            system_prompt=settings.get("system_prompt") or "",
        )

    def _long_rows(self, name: str) -> LongRule:
        """What becomes of long rows of this set; rows to predict are never split, since each has one prediction."""
        choice = choice_of(self.setup.plan.settings)
        if name.startswith(PREDICTED) and choice == "split":
            choice = "refuse"
        return LongRule(choice, self.max_length)

    def _vocabulary(self) -> int:
        """How many tokens the model has: embeddings may be larger than the tokenizer's vocabulary."""
        config = probe_run(self.setup.plan.model).model_config or {}
        text = config.get("text_config") or {}
        sizes = [self.embeddings, config.get("vocab_size"), text.get("vocab_size"), len(self.tokenizer)]
        return max(size for size in sizes if isinstance(size, int))

    def shuffle_seed_of(self, name: str) -> int | None:
        return None if name.startswith(PREDICTED) else self._shuffle_seed

    @property
    def _shuffle_seed(self) -> int | None:
        settings = self.setup.plan.settings
        return settings["seed"] if settings.get("shuffle_dataset") else None

    def _expander(self, packing: PackingPlan | None, name: str, own_folder: str) -> Expander | None:
        settings = self.setup.plan.settings
        if self.processor is None or not is_vision(self.processor):
            return None
        if packing and packing.strategy != "bfd":
            raise ConflictError(
                f"packing_strategy {packing.strategy} splits documents, which could split their images.",
                where=name,
                fix="Use packing_strategy: bfd.",
            )
        folder, limit = own_folder or settings.get("image_folder"), settings.get("max_image_pixels")
        remote = bool(settings.get("allow_remote_images"))
        return Expander(self.processor, folder or "", limit or MAX_PIXELS, remote=remote)

    def packing_of(self, name: str) -> PackingPlan | None:
        """How this set is packed: an evaluation set by `eval_packing` if given, otherwise like the training set."""
        settings = self.setup.plan.settings
        wanted = settings.get("packing")
        if name.startswith("eval") and settings.get("eval_packing") is not None:
            wanted = settings["eval_packing"]
        if not wanted or name.startswith(PREDICTED):
            return None
        if self.max_length is None:
            raise ConflictError(
                "packing needs the length of a block, but max_length is None.",
                where=name,
                fix="Set max_length to the number of tokens in a block.",
            )
        return PackingPlan(settings.get("packing_strategy") or "bfd", self.max_length, self._shuffle_seed)

    def _reader(
        self, columns: list[str], name: str, own: Selection | None, rows: Callable[[], Sequence[Row]]
    ) -> RowReader:
        settings = self.setup.plan.settings
        if self.formatting_func is not None and own is None and "input_ids" not in columns:
            refuse_images(columns, name)
            reader = RowReader("formatting_func", by_function(self.formatting_func), name)
            return filtered(reader, columns, settings)
        setup = with_format(self.setup, own)
        bound = choose_format(
            setup,
            columns,
            name,
            rows=rows,
            has_template=bool(self.tokenizer.chat_template),
            in_python=True,
        )
        self.formats[name] = bound
        return reader_for(bound, columns, name, setup.plugins, settings)


def answer_markers(settings: Mapping[str, Any]) -> AnswerMarkers | None:
    """What stands before answers and questions in rows that are texts; None where they are trained whole."""
    response = settings.get("response_marker")
    return AnswerMarkers(response, settings.get("instruction_marker") or "") if response else None


def _say_what_is_left_out(ledger: Ledger) -> None:
    for reason, rows in ledger.dropped_rows.items():
        which = f"{', '.join(map(str, rows[:5]))}{', …' if len(rows) > 5 else ''}"
        warn(f"predictions leave out {len(rows):,} rows ({which}): {reason}")


def _to_make_one(given: Any) -> str:
    """How to make a data set of what was given in its place."""
    if isinstance(given, (str, os.PathLike)):
        return f'Read it first: load_dataset("json", data_files="{os.fspath(given)}", split="train").'
    if type(given).__module__.partition(".")[0] == "pandas":
        return "Make one: Dataset.from_pandas(frame)."
    return "Make one: Dataset.from_list(rows)."
