"""Which known key a misspelt one stands for: never one of another meaning, though it be spelt nearly so.

A key is words joined by `_`. Each word of a key that is offered is the word that was written, with a slip of the
fingers or cut short: neither is `eval_steps` offered for `save_steps`, nor `optim_target_modules` for
`lora_target_modules`.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Collection, Iterable, Sequence

_OFTEN_LEFT_OUT = {
    "checkpoint", "dataloader", "dataset", "device", "factor", "lr", "max", "name", "num", "per", "steps", "type",
    "use",
}  # fmt: skip
"""Words of keys whose meaning stays the same without them."""


def misspelt(key: str, known: Iterable[str], *, shortest: int = 5) -> str:
    """The known key that this one is a misspelling of; empty where there is none.

    >>> names = ["learning_rate", "gradient_accumulation_steps", "max_grad_norm", "eval_steps", "optim_target_modules"]
    >>> [misspelt(key, names) for key in ("lerning_rate", "learningRate", "grad_accumulation_steps", "grad_norm")]
    ['learning_rate', 'learning_rate', 'gradient_accumulation_steps', 'max_grad_norm']
    >>> [misspelt(key, names) for key in ("save_steps", "lora_target_modules", "eval_stps")]
    ['', '', 'eval_steps']

    Args:
        key: as it was written.
        known: the keys that there are.
        shortest: of how many letters a word that stands alone must be to be taken for a slip, as `mode` of `model`.
    """
    mine = words_of(key)
    joined = "".join(mine)
    split = {name: words_of(name) for name in known}

    def of_same_words(alike: Callable[[str, str], bool]) -> list[str]:
        return [name for name, its in split.items() if len(its) == len(mine) and all(map(alike, mine, its))]

    shortest = shortest if len(mine) == 1 else 4
    found = [name for name, its in split.items() if "".join(its) == joined]
    if found := found or of_same_words(lambda one, meant: _is_slip(one, meant, shortest=shortest)):
        return _closest(key, found)
    found = [
        name
        for name, its in split.items()
        if len(its) != len(mine) and abs(len(name) - len(key)) < 4 and _is_slip(joined, "".join(its), most=1)
    ]
    if found:
        return _closest(key, found)
    for found in (
        of_same_words(
            lambda one, whole: _is_slip(one, whole, shortest=shortest) or _is_short(one, whole, alone=len(mine) == 1)
        ),
        [name for name, its in split.items() if _lacks_little(mine, its)],
    ):
        if len(found) == 1:
            return found[0]
    return ""


@functools.lru_cache(4096)
def words_of(key: str) -> tuple[str, ...]:
    """The words of a key, in lower case.

    >>> words_of("numTrainEpochs"), words_of("lora-rank")
    (('num', 'train', 'epochs'), ('lora', 'rank'))
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key.strip())
    return tuple(word for word in re.split(r"[-_.\s]+", spaced.lower()) if word)


def _closest(key: str, names: Collection[str]) -> str:
    return max(sorted(names), key=lambda name: difflib.SequenceMatcher(None, key, name).ratio())


def _is_slip(word: str, meant: str, *, most: int = 2, shortest: int = 4) -> bool:
    """Whether one word is the other with a letter wrong, missing, doubled or swapped; of long ones, two letters."""
    if word.rstrip("s") == meant.rstrip("s") or _without_doubles(word) == _without_doubles(meant):
        return True
    length = min(len(word), len(meant))
    longer = max(len(word), len(meant))
    digits, its = (sorted(re.findall(r"\d", one)) for one in (word, meant))
    if length < shortest or longer < 5 or longer > length + most or digits != its:
        return False
    return _distance(word, meant) <= min(most, 2 if length >= 8 else 1)


def _without_doubles(word: str) -> str:
    return re.sub(r"(.)\1+", r"\1", word)


def _is_short(word: str, whole: str, *, alone: bool) -> bool:
    """Whether a word is the beginning of another; of one that stands alone, by which less can be told, a long one."""
    return whole.startswith(word) and len(word) >= (4 if alone else 3) and (not alone or len(whole) >= len(word) + 2)


def _lacks_little(mine: Sequence[str], its: Sequence[str]) -> bool:
    """Whether a key has the words of another in their order, but for some that say little."""
    if len(mine) < 2 or len(mine) >= len(its):
        return False
    left = list(its)
    for word in mine:
        found = next((i for i, one in enumerate(left) if one == word), None)
        if found is None or not set(left[:found]) <= _OFTEN_LEFT_OUT:
            return False
        left = left[found + 1 :]
    return set(left) <= _OFTEN_LEFT_OUT


def _distance(one: str, other: str) -> int:
    """How many letters are wrong, missing, too many or swapped (Damerau 1964, doi 10.1145/363958.363994)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, its in enumerate(other, 1):
            cost = min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != its))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == its:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]
