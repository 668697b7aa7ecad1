"""The batch of a data set that needs the most memory, among those that a shuffled run may see."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

_SHUFFLES = 8
_OF_A_STREAM = 512
"""How many rows of a stream are looked at."""


def largest_batch(dataset: Any, size: int, *, flattened: bool, seed: int) -> list[dict[str, Any]]:
    """The rows of the largest micro-batch in a few shuffled epochs.

    Args:
        dataset: prepared rows, or a stream of them.
        size: rows of a micro-batch.
        flattened: whether rows stand end to end, so that the sum of their lengths counts, and not the longest.
        seed: of the shuffles.
    """
    if not hasattr(dataset, "__len__"):
        dataset = list(itertools.islice(iter(dataset), _OF_A_STREAM))
    lengths = _lengths(dataset)
    size = min(size, len(lengths))
    random, best, most = np.random.default_rng(seed), np.arange(size), -1.0
    for _ in range(_SHUFFLES):
        order = random.permutation(len(lengths))
        batches = order[: len(order) // size * size].reshape(-1, size)
        weights = lengths[batches].sum(1) if flattened else lengths[batches].max(1) * size
        largest = int(weights.argmax())
        if weights[largest] > most:
            best, most = batches[largest], float(weights[largest])
    return [dataset[int(one)] for one in best]


def batch_rows(trainer: Any, size: int) -> list[dict[str, Any]]:
    """The rows of the largest micro-batch of so many of a trainer's training set."""
    return largest_batch(trainer.train_dataset, size, flattened=trainer.padding_free, seed=trainer.args.seed)


def _lengths(dataset: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    rows: Sequence[Any] = (
        dataset["input_ids"] if hasattr(dataset, "column_names") else [r["input_ids"] for r in dataset]
    )
    return np.fromiter((len(one) for one in rows), np.int64)
