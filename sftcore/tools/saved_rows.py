"""Read the rows that a saved run was trained or evaluated on again, with its own format and template."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from sftcore.core.errors import DataError, SFTCoreError
from sftcore.core.types import TokenizedRow
from sftcore.data.mixing.mixture import DataSource, Mixture, as_mixture
from sftcore.data.source.several import GivenSet, given_set, load_set, split_set
from sftcore.tools.saved import SavedRun

if TYPE_CHECKING:
    from sftcore.config.recipe import Recipe

_NAME = "train_dataset"


@frozen
class RunRows:
    """Token rows of a run's data, and a label for the data."""

    rows: tuple[TokenizedRow, ...]
    label: str


def rows_of_run(
    run: SavedRun,
    tokenizer: Any,
    limit: int,
    *,
    max_length: int | None = None,
    part: Literal["train", "eval"] = "train",
    seed: int | None = None,
) -> RunRows:
    """Up to `limit` rows of the run's training or evaluation set, with the run's labels and without packing.

    Args:
        run: a run whose manifest contains a recipe, as that of every run from the command line does.
        tokenizer: the run's tokenizer, with its template.
        limit: how many token rows to return; rows that the run drops are skipped.
        max_length: cut longer rows to this, on the side that the run cuts; None is the run's own max_length.
        part: which set; rows held back by `eval_fraction` or `eval_rows` are held back here too.
        seed: the seed for shuffling raw rows; None keeps their order.

    Raises:
        DataError: the run does not name its data, or they can no longer be read.
    """
    from sftcore.config.recipe import parse_recipe

    where = run.place
    raw = run.manifest.get("recipe")
    if not raw:
        raise DataError("there is no manifest.json with a recipe, so the run's data are not known.", where=where)
    recipe = parse_recipe(raw, place=f"{where}/manifest.json")
    try:
        source, dataset = dataset_of_run(recipe, run, part)
        mixture = as_mixture(dataset) or Mixture((DataSource(dataset),))
        rows = _of_all([_tokenized(recipe, one, tokenizer, limit, max_length, seed) for one in mixture.sources], limit)
    except (SFTCoreError, OSError) as error:
        raise DataError(f"the run's data cannot be read again: {error}", where=where) from error
    if not rows:
        raise DataError(f"{source.label} has no usable row.", where=where)
    return RunRows(tuple(rows), source.label)


def _of_all(rows: list[list[TokenizedRow]], limit: int) -> list[TokenizedRow]:
    """Up to so many rows, as many of every source as there are."""
    turns = itertools.zip_longest(*rows)
    return list(itertools.islice((one for turn in turns for one in turn if one is not None), limit))


def dataset_of_run(recipe: Recipe, run: SavedRun, part: str) -> tuple[GivenSet, Any]:
    """The raw rows of a run's "train" or "eval" set (of several, all of them), and where they are.

    Raises:
        DataError: the run has no such set, or it cannot be read.
    """
    data = recipe.data
    from_train = part == "train" or data.held_back is not None
    wanted = data.sources if from_train else data.eval_sources
    if not wanted:
        raise DataError("the run has no evaluation set.")
    given = given_set(wanted, data.stop)
    dataset = load_set(given)
    if data.held_back is not None:
        train, held_back = split_set(dataset, data.held_back, int(run.manifest.get("seed", 42)))
        dataset = train if part == "train" else held_back
    return given, dataset


def _tokenized(
    recipe: Recipe, source: DataSource, tokenizer: Any, limit: int, max_length: int | None, seed: int | None
) -> list[TokenizedRow]:
    from sftcore.config.setup import set_up
    from sftcore.data.sets import DataPreparation

    # without packing, since a block would mix documents and always has the run's length
    settings = {key: value for key, value in recipe.training.items() if key not in ("packing", "eval_packing")}
    setup = set_up(recipe.chosen, settings, recipe.model, where=recipe.place, block=recipe.block)
    longest = max_length or settings.get("max_length", 1024)
    dataset = source.taken()
    pipeline = DataPreparation(setup, tokenizer, longest).pipeline(dataset.column_names, _NAME, source)
    order = list(range(len(dataset)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    rows: list[TokenizedRow] = []
    for start in range(0, len(order), 100):
        batch = [dataset[number] for number in order[start : start + 100]]
        found = pipeline.inspect(batch, range(len(batch)))
        rows += [one.row for one in found if one.error is None and one.row is not None and not one.dropped]
        if len(rows) >= limit:
            break
    return rows[:limit]
