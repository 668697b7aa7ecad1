"""Writes the list of all rows of a run: what became of each, and its loss in each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import define

from sftcore.data.account.origins import Origins
from sftcore.data.account.outcomes import parts_of
from sftcore.data.account.table import CUT, DROPPED, FILE, KEPT, joined, same_as, table_of, write_table
from sftcore.train.account.census import Census, short_name
from sftcore.train.account.places import places_of
from sftcore.util.plain import public

if TYPE_CHECKING:
    import pyarrow as pa

    from sftcore.data.sets import DataPreparation
    from sftcore.train.account.measured import Measured

_NAMES = ("train_dataset", "eval_dataset")


@define(eq=False)
class RowsFile:
    """The list of the rows of one run.

    data: the run's preparation. census: of its training set. evaluation: its evaluation set, a mapping of several by
    name, or None. loss: which loss the rows have, by its plugin. hidden: whether folders of this machine are left out.
    """

    data: DataPreparation
    census: Census
    evaluation: Any
    loss: str
    hidden: bool = False
    _known: pa.Table | None = None
    _count: int = 0

    def write(self, folder: Path, measured: Measured) -> None:
        """Write the whole list into the folder; what became of the rows is found once.

        Raises:
            WriteError: it cannot be written.
        """
        if self.census.streamed:
            table, count = self._streamed(), len(self.census.met)
        else:
            self._known = self._all() if self._known is None else self._known
            table, count = self._known, self._count
        losses = measured.columns(count)
        for name, values in losses.items():
            place = table.column_names.index(name)
            more = table.column(name).slice(count)
            table = table.set_column(place, table.schema.field(name), _joined(values, more, table.schema.field(name)))
        epochs = sorted(measured.epochs)
        facts = {"loss": self.loss if epochs else None, "epochs": epochs, "of": "run"}
        write_table(table, folder / FILE, facts)

    def _all(self) -> pa.Table:
        """The rows of the training set, then those of the evaluation sets, which have no losses."""
        train = self._of_set(self.census.origins, "train_dataset", self.census.count)
        several = self.evaluation if isinstance(self.evaluation, Mapping) else {"": self.evaluation}
        tables, digests, self._count = [*train[0]], [*train[1]], self.census.count
        for name, dataset in several.items():
            named = f"eval_dataset[{name!r}]" if name else "eval_dataset"
            origins = None if dataset is None else Origins.of(self.data, dataset, named)
            if origins is not None:
                some, their = self._of_set(origins, named, 0)
                tables, digests = [*tables, *some], [*digests, *their]
        table = joined(tables)
        place = table.column_names.index("same_as")
        return table.set_column(place, "same_as", same_as(np.concatenate(digests) if digests else []))

    def _of_set(self, origins: Origins | None, name: str, count: int) -> tuple[list[pa.Table], list[Any]]:
        """The rows of each source of a set, and their digests."""
        shown = name.replace("_dataset", "", 1)
        if origins is None:
            columns = {"set": shown, "source": name, "row": np.arange(count), "outcome": KEPT}
            return [table_of(columns, count)], [np.zeros(count, np.int64)]
        tables, digests = [], []
        for source, outcomes in zip(origins.names, origins.outcomes, strict=True):
            assert outcomes.examples is not None
            label = short_name(source, name) if len(origins.names) > 1 else self.data.labels.get(source, source)
            tables.append(self._of_source(outcomes.examples, shown, label, source))
            digests.append(outcomes.examples["digest"].to_numpy())
        return tables, digests

    def _of_source(self, examples: pa.Table, shown: str, label: str, name: str) -> pa.Table:
        import pyarrow as pa
        import pyarrow.compute as pc

        rows = examples["row"].to_numpy()
        reasons = examples["dropped"].combine_chunks()
        dropped = pc.is_valid(reasons).to_numpy(zero_copy_only=False)
        cut = np.where(dropped, 0, examples["tokens_cut"].to_numpy())
        kinds = np.where(dropped, 2, (cut > 0).astype(np.int32))
        places = places_of(self.data.files.get(name))
        where = {} if places is None else places.columns(rows)
        if self.hidden and places is not None:
            paths = pa.array([public(path) for path in where["file"].dictionary.to_pylist()])
            where["file"] = pa.DictionaryArray.from_arrays(where["file"].indices, paths)
        outcome = pa.DictionaryArray.from_arrays(pa.array(kinds, pa.int32()), pa.array([KEPT, CUT, DROPPED]))
        columns = {
            "set": shown, "source": public(label) if self.hidden else label, **where, "row": rows,
            "part": parts_of(rows), "outcome": outcome, "reason": reasons, "tokens": examples["tokens_in"].to_numpy(),
            "tokens_cut": cut, "supervised": np.where(dropped, 0, examples["supervised"].to_numpy()),
        }  # fmt: skip
        return table_of(columns, len(rows))

    def _streamed(self) -> pa.Table:
        """The rows of a stream that were trained on so far, in the order in which they were met."""
        met = list(self.census.met.items())
        names = self.census.names
        keys = [key for key, _ in met]
        facts = [one for _, one in met]
        cut = [one[1] for one in facts]
        label = self.data.labels.get("train_dataset", "train_dataset")
        columns = {
            "set": "train",
            "source": [names[source] if len(names) > 1 else label for source, _, _ in keys],
            "row": [row for _, row, _ in keys],
            "part": [part for _, _, part in keys],
            "outcome": [CUT if one else KEPT for one in cut],
            "tokens": [one[0] for one in facts],
            "tokens_cut": cut,
            "supervised": [one[2] for one in facts],
            "same_as": same_as([one[3] for one in facts]),
        }
        return table_of(columns, len(met))


def _joined(values: Any, more: Any, field: Any) -> Any:
    import pyarrow as pa

    return pa.chunked_array([values.cast(field.type), *more.chunks], field.type)
