"""Rows that are there twice: the same, or in an evaluation set the same as in the training set but for a few words.

The rows to compare with, those of the evaluation, are read first and kept as the hashes of their runs of three words;
the rows of the training set, which may be many more, are compared as they are read, and nothing of them is kept.
Candidates come from MinHash (Broder, 1997) in bands; whether one is near is then computed exactly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from attrs import define, field

from sftcore.check.findings import Location
from sftcore.check.text import turns_of, words_of
from sftcore.core.types import Example

Hashes: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.uint64]]"

NEAR = 0.8
"""Two rows are near if so many of their runs of words, of those that either has, are in both (Jaccard)."""
_RUN, _BANDS, _IN_BAND = 3, 16, 4
_COMMON, _FEW = 0.2, 10
"""Runs in more than this share of the rows are left out, as are those of an instruction that all have; unless there
are only a few rows."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
"""A word, or a character of a script that has no spaces."""


@define
class Seen:
    """Hashes of rows and prompts, with the first row that has each."""

    rows: dict[int, int | str] = field(factory=dict)
    prompts: dict[int, tuple[int, int]] = field(factory=dict)

    def add(self, other: Seen, of: str) -> None:
        """Take up the rows of another source, whose numbers are followed by `of` where there are several."""
        for key, number in other.rows.items():
            self.rows.setdefault(key, f"{number}{of}" if of else number)


@define
class NearRows:
    """The rows of the evaluation sets, with the first row of the training set that each is near to."""

    _rows: list[tuple[str, Location, Hashes]] = field(factory=list)
    _bands: dict[tuple[int, int], list[int]] | None = None
    _common: Hashes = field(factory=lambda: np.empty(0, np.uint64))
    _found: dict[int, tuple[str, float]] = field(factory=dict)

    def add(self, of: str, location: Location, example: Example) -> None:
        """Take up a row of an evaluation set; all of them before the first `compare`."""
        self._rows.append((of, location, _runs(example)))

    def compare(self, number: int | str, example: Example) -> None:
        """Compare a row of the training set with all of them."""
        if not self._rows:
            return
        if self._bands is None:
            self._bands = self._banded()
        runs = np.setdiff1d(_runs(example), self._common, assume_unique=True)
        candidates = {one for band in _bands_of(runs) for one in self._bands.get(band, ())}
        for one in sorted(candidates - self._found.keys()):
            mine = self._rows[one][2]
            both = len(np.intersect1d(mine, runs, assume_unique=True))
            share = both / (len(mine) + len(runs) - both)
            if share >= NEAR:
                self._found[one] = str(number), share

    def near(self, of: str) -> Iterator[tuple[Location, str]]:
        """The rows of one set that are near to one of the training set, and to which, in words."""
        for one, (number, share) in sorted(self._found.items()):
            name, location, _ = self._rows[one]
            if name == of:
                yield location, f"{share:.0%} as training row {number}"

    def _banded(self) -> dict[tuple[int, int], list[int]]:
        if len(self._rows) >= _FEW:
            counts = Counter(int(run) for _, _, runs in self._rows for run in runs)
            most = _COMMON * len(self._rows)
            self._common = np.array(sorted(run for run, count in counts.items() if count > most), np.uint64)
        found: dict[tuple[int, int], list[int]] = {}
        for one, (of, location, runs) in enumerate(self._rows):
            own = np.setdiff1d(runs, self._common, assume_unique=True)
            self._rows[one] = of, location, own
            for band in _bands_of(own):
                found.setdefault(band, []).append(one)
        return found


def _runs(example: Example) -> Hashes:
    """Hashes of the runs of words in all its texts but those of the system, each once."""
    if example.tokens is not None:
        words: list[object] = list(example.tokens.input_ids)
    else:
        system = {f"turn {i} ({turn.role})" for i, turn in enumerate(turns_of(example)) if turn.role in _SYSTEM}
        texts = [one.text.lower() for one in words_of(example) if one.where not in system]
        words = [word for text in texts for word in _WORD.findall(text)]
    runs = {hash(tuple(words[i : i + _RUN])) & _MASK for i in range(max(len(words) - _RUN + 1, min(len(words), 1)))}
    return np.array(sorted(runs), np.uint64)


_SYSTEM = ("system", "developer")
_MASK = 2**64 - 1
_random = np.random.default_rng(0)
_FACTORS, _SHIFTS = (
    _random.integers(0, 2**63, _BANDS * _IN_BAND, np.uint64) * np.uint64(2) + np.uint64(1) for _ in "ab"
)


def _bands_of(runs: Hashes) -> list[tuple[int, int]]:
    """Rows that are near have at least one of these in common, with near certainty; none where there are no words."""
    if not len(runs):
        return []
    least = ((runs[:, None] ^ _SHIFTS) * _FACTORS).min(0).reshape(_BANDS, _IN_BAND)
    return [(number, hash(tuple(band.tolist()))) for number, band in enumerate(least)]
