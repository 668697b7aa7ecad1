"""The prepared rows of a map-style set: from the cache, or made and put there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from sftcore.data.images.expand import is_vision
from sftcore.data.images.pictures import refuse_missing
from sftcore.data.ledger import Ledger
from sftcore.data.packing.blocks import PackingPlan
from sftcore.data.pipeline import Pipeline
from sftcore.data.store.cache import find_or_make, wrapped
from sftcore.data.store.keys import key_of
from sftcore.data.store.mapstyle import build

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


def built(
    run: Any,
    dataset: Dataset,
    pipeline: Pipeline,
    packing: PackingPlan | None,
    name: str,
    *,
    in_mixture: bool,
) -> Dataset:
    """The set from the cache, or prepared and put there; rows that are mixed are packed later, if at all.

    `run` is the `sftcore.data.sets.DataPreparation` that keeps notes, ledgers and keys; it comes above.
    """
    settings = run.setup.plan.settings
    folder = getattr(pipeline.expander, "folder", None)
    own = {**settings, "image_folder": folder, "long_rows": pipeline.long_rows.choice}
    how = f"{packing.strategy}, shuffle seed {packing.shuffle_seed}" if packing else ""
    if packing and in_mixture:
        how, packing = f"{packing.strategy}, of a mixture", None

    made = []

    def make(folder: Path | None) -> tuple[pa.Table, Ledger]:
        made.append(name)
        num_proc = settings.get("dataset_num_proc")
        return build(dataset, pipeline, name=name, packing=packing, num_proc=num_proc, folder=folder)

    key = None
    if settings.get("dataset_cache", True):
        key = key_of(
            dataset,
            format=run.formats.get(name) or run.formatting_func,
            tokenizer=run.tokenizer,
            processor=run.processor if is_vision(run.processor) else None,
            settings=own,
            max_length=run.max_length,
            packing=how,
            numbering=pipeline.numbering,
            wrappers=[one for one in run.setup.plugins.bound if one.wraps("make_formatter")],
        )
        run.keys[name] = key
        if key is None:
            run.notes.append(f"{name}: not cached, because the formatting function has no stable hash")
    if key is None and run.shared is None:
        table, ledger = make(None)
        run.ledgers.append(ledger)
        return wrapped(table)
    if key is None:
        set_and_number = {"set": name, "number": str(len(run.ledgers))}
        found, ledger, _ = find_or_make(set_and_number, make, folder=run.shared)
        note = "prepared by one process for all processes of this machine, and not kept"
    else:
        found, ledger, note = find_or_make(key, make)
        if pipeline.expander is not None and not made:
            refuse_missing(found, name)
    run.notes.append(f"{name}: {note}")
    run.ledgers.append(evolve(ledger, name=name))
    return found
