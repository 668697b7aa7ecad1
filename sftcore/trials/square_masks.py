"""Read a collator's mask of four dimensions: which tokens see which, and whether documents are kept to themselves.

transformers hands such a mask on as it is: what it lets through, the model reads.
Shapes: B rows, H heads, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "np.ndarray[Any, Any]"

HIDDEN = -100.0
"""A number that is added to a score hides a token if it is below this: e to the power of it is nothing."""


def seen_through(mask: torch.Tensor, shape: tuple[int, int], attention: str = "") -> Array:
    """Which tokens see which: (B, T, T) bool, the first of them the one that sees.

    Args:
        mask: (1 or B, H, T, T). Bools say what is seen; numbers are added to the scores.
        shape: of the input ids.
        attention: transformers' name of the run's attention. "eager" adds bools too, as 0 and 1, which hides nothing.

    Raises:
        ValueError: it has another shape, or numbers that cannot be added to scores.
    """
    rows, tokens = shape
    if mask.ndim != 4 or mask.shape[0] not in (1, rows) or tuple(mask.shape[2:]) != (tokens, tokens):
        raise ValueError(
            f"its attention_mask has shape {tuple(mask.shape)}; wanted are {shape}, or ({rows}, 1, {tokens}, {tokens})"
        )
    found = mask.detach().cpu()
    if not found.is_floating_point() and found.dtype.itemsize > 1:
        kind = str(found.dtype).removeprefix("torch.")
        raise ValueError(
            f"its attention_mask of shape {tuple(mask.shape)} is {kind}; in that shape bools, or floats to add to "
            "the scores, are wanted"
        )
    added = found.is_floating_point() or attention == "eager"
    seen: Array = (found.float() > HIDDEN if added else found != 0).any(dim=1).numpy()
    return np.broadcast_to(seen, (rows, tokens, tokens))


def spans_of(ids_T: Array, documents: Sequence[Array]) -> list[tuple[int, int, int]]:
    """Where documents stand in a row, from the left, the longest that fits first: (start, end, which)."""
    left = sorted((which for which, one in enumerate(documents) if len(one)), key=lambda which: -len(documents[which]))
    found, place = [], 0
    while place < len(ids_T):
        which = next(
            (one for one in left if np.array_equal(ids_T[place : place + len(documents[one])], documents[one])), None
        )
        if which is None:
            place += 1
        else:
            left.remove(which)
            found.append((place, place + len(documents[which]), which))
            place = found[-1][1]
    return found


def hold_apart(seen_TT: Array, counted_T: Array, spans: Sequence[tuple[int, int]]) -> None:
    """Look whether each document sees itself alone, all of itself, and no label that is yet to be predicted.

    Args:
        seen_TT: which token sees which.
        counted_T: which tokens count for the loss.
        spans: of the documents; all else is padding.

    Raises:
        ValueError: says what it sees, or does not.
    """
    inside = np.zeros(len(seen_TT), bool)
    for start, end in spans:
        inside[start:end] = True
    for start, end in spans:
        others = seen_TT[start:end].copy()
        others[:, start:end] = False
        if others.any():
            what = "another document" if others[:, inside].any() else "padding"
            count = int(others.any(axis=1).sum())
            raise ValueError(
                f"its attention_mask lets {count} of a document's {end - start} tokens see {what} (allowed: 0)"
            )
        own = seen_TT[start:end, start:end]
        if lost := int((~np.tril(own).any(axis=0)).sum()):
            raise ValueError(f"its attention_mask hides {lost} of a document's {end - start} tokens (allowed: 0)")
        if foreseen := _foreseen(own, counted_T[start:end]):
            raise ValueError(
                f"its attention_mask lets tokens see what they predict: {foreseen} of a document's {end - start} "
                "(allowed: 0)"
            )


def _foreseen(seen_TT: Array, counted_T: Array) -> int:
    """How many supervised tokens are seen from where they are predicted, at once or by way of other tokens."""
    places = np.arange(len(seen_TT))
    furthest = np.maximum(np.where(seen_TT, places, 0).max(axis=1), places)
    reached = np.maximum.accumulate(furthest)
    return int((counted_T[1:] & (reached[:-1] >= places[1:])).sum())


def gaps_between(spans: Sequence[tuple[int, int]], length: int) -> Iterator[tuple[int, int]]:
    """What stands between spans, before the first and behind the last."""
    place = 0
    for start, end in [*spans, (length, length)]:
        if start > place:
            yield place, start
        place = end
