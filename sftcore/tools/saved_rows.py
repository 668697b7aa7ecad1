"""The rows that a saved run was trained or evaluated on, read again through its own format and template."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from sftcore.core.errors import DataError, SFTCoreError
from sftcore.core.types import TokenizedRow
from sftcore.data.source.load import Source, load, paths_of, split_off
from sftcore.tools.saved import SavedRun

if TYPE_CHECKING:
    from datasets import Dataset

    from sftcore.config.recipe import Recipe

_NAME = "train_dataset"


@frozen
class RunRows:
    """Token rows of a run's data; `numbers` are those of their raw rows, `label` names the data, `notes` say more."""

    rows: tuple[TokenizedRow, ...]
    numbers: tuple[int, ...]
    label: str
    notes: tuple[str, ...] = ()


def rows_of_run(
    run: SavedRun,
    tokenizer: Any,
    limit: int,
    *,
    max_length: int | None = None,
    part: Literal["train", "eval"] = "train",
    seed: int | None = None,
) -> RunRows:
    """Up to `limit` rows of the run's training or evaluation set, with labels as in the run, never packed.

    Args:
        run: one whose manifest holds its recipe, as every run from the command line writes.
        tokenizer: the run's, with its template.
        limit: how many token rows; those that the run drops are passed over.
        max_length: longer rows are cut to it, on the side that the run cuts; None is the run's own.
        part: which set; a share that `eval_fraction` held back is held back here too.
        seed: raw rows in random order; None takes them as they come.

    Raises:
        DataError: the run names no data, or they are not where it found them.
    """
    where = str(run.folder or run.name)
    recipe = _recipe_of(run, where)
    try:
        source, dataset = _dataset(recipe, run, part)
        rows, numbers = _tokenized(recipe, dataset, tokenizer, limit, max_length, seed)
    except (SFTCoreError, OSError) as error:
        raise DataError(f"the run's data cannot be read again: {error}", where=where) from error
    if not rows:
        raise DataError(f"no row of {source.label} is left to use.", where=where)
    return RunRows(tuple(rows), tuple(numbers), source.label, _changed(run, source))


def _recipe_of(run: SavedRun, where: str) -> Recipe:
    from sftcore.config.recipe import parse_recipe

    raw = run.manifest.get("recipe")
    if not raw:
        raise DataError("no manifest.json with a recipe stands there, so the run's data are not known.", where=where)
    return parse_recipe(raw, place=f"{where}/manifest.json")


def _dataset(recipe: Recipe, run: SavedRun, part: str) -> tuple[Source, Dataset]:
    from sftcore.data.source.files import local_files

    data = recipe.data
    from_train = part == "train" or data.eval_fraction is not None
    wanted = data.train if from_train else data.eval
    if wanted is None:
        raise DataError("the run has no evaluation set.")
    files = local_files(wanted)
    source = Source(files.label if files else str(wanted), files)
    dataset = load(source, data, data.split if from_train else data.eval_split)
    if data.eval_fraction is not None:
        train, held_back = split_off(dataset, data.eval_fraction, int(run.manifest.get("seed", 42)))
        dataset = train if part == "train" else held_back
    return source, dataset


def _tokenized(
    recipe: Recipe, dataset: Dataset, tokenizer: Any, limit: int, max_length: int | None, seed: int | None
) -> tuple[list[TokenizedRow], list[int]]:
    from sftcore.config.setup import set_up
    from sftcore.data.sets import DataPreparation

    # Rows as they are before packing: a block would mix documents, and its length is the run's
    settings = {key: value for key, value in recipe.training.items() if key not in ("packing", "eval_packing")}
    setup = set_up(recipe.chosen, settings, recipe.model, where=recipe.place, block=recipe.block)
    longest = max_length or settings.get("max_length", 1024)
    pipeline = DataPreparation(setup, tokenizer, longest).pipeline(dataset.column_names, _NAME)
    order = list(range(len(dataset)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    rows: list[TokenizedRow] = []
    numbers: list[int] = []
    for start in range(0, len(order), 100):
        batch = order[start : start + 100]
        place = {number: i for i, number in enumerate(batch)}  # inspect gives them in the order of their numbers
        for one in sorted(
            pipeline.inspect([dataset[number] for number in batch], batch), key=lambda x: place[x.number]
        ):
            if one.error is None and one.row is not None and not one.dropped and len(rows) < limit:
                rows.append(one.row)
                numbers.append(one.number)
        if len(rows) >= limit:
            break
    return rows, numbers


def _changed(run: SavedRun, source: Source) -> tuple[str, ...]:
    from sftcore.train.record.manifest import sha256_of_files

    known = run.manifest.get("data_files_sha256") or {}
    now = sha256_of_files(path for path in paths_of(source) if str(path) in known)
    changed = [name for name, digest in now.items() if digest != known[name]]
    return tuple(f"{name} has changed since the run" for name in changed)
