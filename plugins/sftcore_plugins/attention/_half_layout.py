"""How documents lie in memory for attention by products: each by itself, padded, in an order in which some share them.

A batch's layers all have the same documents, so that what follows from these alone is made once.

Shapes: B rows, T tokens, H heads of queries, K heads of keys, G heads of queries that share one, D width of a head;
of documents that are computed together, N of P tokens each.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from attrs import frozen

if TYPE_CHECKING:
    import torch

BLOCK = 192
"""The most queries at a time: fewer are more and slower products, more compute scores of keys that are hidden. From 160
to 256, steps take the same time, and 2% less than with 128."""
WIDTH = 32
"""Documents are padded to a multiple of it: torch's softmax in bfloat16 computes what is left of a row number by
number, and took 2.7 times as long for 90 keys as for 96. There are fewer shapes then, for each of which oneDNN makes
code, and documents of one shape share products, since those of a short one take longer to start than to compute."""
SCORES_AT_ONCE = 2**19
"""How many scores a block of such documents may have: 1 MiB of them, which caches hold."""

Numbers = npt.NDArray[Any]
Place = tuple[int, int, int]
"""Row, first token and end of a document."""


@frozen
class Shape:
    """What a layout follows from, besides the documents."""

    rows: int
    tokens: int
    heads: int
    key_heads: int
    window: int | None


@frozen
class Group:
    """Documents that are computed together; all are padded to one length, which follows from their own alone."""

    documents: int
    padded: int
    blocks: Sequence[tuple[slice, slice, torch.Tensor]]
    """Queries of a block, the keys that any of them sees, and what is added to their scores, (Q * G, S)."""


@frozen
class Layout:
    """Where the states of all documents are taken from, and where each token's are then."""

    groups: Sequence[Group]
    queries: torch.Tensor
    """Of each query its row among (B * T * H): documents one after the other, each (K, P, G)."""
    keys: torch.Tensor
    """The same among (B * T * K), each document (K, P)."""
    queries_back: torch.Tensor
    """Of each of (B * T * H) its place among `queries`."""
    keys_back: torch.Tensor
    added: torch.Tensor
    """The places among `queries` of what documents are padded with, which is their own last token."""

    def parts(self, states: torch.Tensor, heads: int, key_heads: int) -> Iterator[torch.Tensor]:
        """The states of each group, (N * K, P * G, D), of those that `queries` or `keys` took."""
        sizes = [heads * group.documents * group.padded for group in self.groups]
        for part, group in zip(states.split(sizes), self.groups, strict=True):
            yield part.view(group.documents * key_heads, -1, states.shape[-1])


def layout_of(documents: Sequence[tuple[int, slice]], shape: Shape) -> Layout:
    """The layout of these documents, which fill the rows; that of the last ones is kept."""
    import torch

    places = tuple((row, span.start, span.stop) for row, span in documents)
    if torch._C._len_torch_dispatch_stack():  # tensors of another kind, which do not outlive their mode
        return _made(places, shape)
    return _kept(places, shape)


@functools.lru_cache(maxsize=2)  # of models in which layers with a window and layers without take turns
def _kept(places: Sequence[Place], shape: Shape) -> Layout:
    import torch

    with torch.inference_mode(mode=False):
        return _made(places, shape)


def _made(places: Sequence[Place], shape: Shape) -> Layout:
    shared, groups = shape.heads // shape.key_heads, list(_groups(places, shape.heads))
    heads_K1 = np.arange(shape.key_heads)[:, None]
    keys, keys_added = [], []
    for alike, padded in groups:
        first_N1, last_N1 = (
            np.array([[row * shape.tokens + token] for row, token in ends])
            for ends in (((row, start) for row, start, _ in alike), ((row, end - 1) for row, _, end in alike))
        )
        wanted_NP = first_N1 + np.arange(padded)
        tokens_NP = np.minimum(wanted_NP, last_N1)
        keys.append((tokens_NP[:, None] * shape.key_heads + heads_K1).ravel())
        keys_added.append(np.repeat((wanted_NP > last_N1)[:, None], shape.key_heads, axis=1).ravel())
    of_keys, key_is_added = np.concatenate(keys), np.concatenate(keys_added)
    of_queries = (of_keys[:, None] * shared + np.arange(shared)).ravel()
    is_added = np.repeat(key_is_added, shared)
    hiding = _hiding(shape, max(end - start for _, start, end in places))
    return Layout(
        [Group(len(alike), padded, list(_blocks(padded, shape.window, hiding, shared))) for alike, padded in groups],
        _tensor(of_queries),
        _tensor(of_keys),
        _tensor(_back(of_queries, is_added)),
        _tensor(_back(of_keys, key_is_added)),
        _tensor(is_added.nonzero()[0]),
    )


def _back(taken: Numbers, is_added: Numbers) -> Numbers:
    """Where each row is among those that are taken, apart from what is added."""
    places = (~is_added).nonzero()[0]
    found = np.empty(len(places), dtype=np.int64)
    found[taken[places]] = places
    return found


def _tensor(numbers: Numbers) -> torch.Tensor:
    import torch

    return torch.tensor(numbers, device="cpu")


def _groups(places: Sequence[Place], num_heads: int) -> Iterator[tuple[list[Place], int]]:
    """Documents to compute together, and the length to which they are padded."""
    of_length: dict[int, list[Place]] = {}
    for place in places:
        _, start, end = place
        of_length.setdefault(-(-(end - start) // WIDTH) * WIDTH, []).append(place)
    for padded, alike in of_length.items():
        at_once = max(SCORES_AT_ONCE // (num_heads * min(padded, BLOCK) * padded), 1)
        for first in range(0, len(alike), at_once):
            yield alike[first : first + at_once], padded


def _blocks(
    padded: int, window: int | None, hiding: torch.Tensor, shared: int
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    behind, number = hiding.shape[1] - BLOCK, -(-padded // BLOCK)
    step = -(-padded // number // WIDTH) * WIDTH  # none is much shorter than the others
    for start in range(0, padded, step):
        end = min(start + step, padded)
        first = 0 if window is None else max(0, start - window + 1) // WIDTH * WIDTH
        own = hiding[: (end - start) * shared, behind - (start - first) : behind + end - start]
        yield slice(start * shared, end * shared), slice(first, end), own


def _hiding(shape: Shape, longest: int) -> torch.Tensor:
    """What is added to scores: minus infinity where a query does not see a key, (BLOCK * G, A + BLOCK) bfloat16.

    The first query of a block stands at the key A; a block takes the columns that it has keys for.
    """
    import torch

    behind = (longest - 1) // BLOCK * BLOCK
    if shape.window is not None:
        behind = min(behind, shape.window + WIDTH)
    away = np.arange(BLOCK)[:, None] + behind - np.arange(behind + BLOCK)
    hidden = (away < 0) if shape.window is None else (away < 0) | (away >= shape.window)
    of_heads = _tensor(hidden.repeat(shape.heads // shape.key_heads, axis=0))
    return torch.zeros(of_heads.shape, dtype=torch.bfloat16, device="cpu").masked_fill_(of_heads, float("-inf"))
