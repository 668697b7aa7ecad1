"""The cheapest change of a recipe with which its run fits into a given memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from sftcore.core.errors import SFTCoreError
from sftcore.tools.estimate.estimate import Estimate

_SHORTEST = 128


@frozen
class Change:
    """Settings to add to a recipe, as key=value, and what they cost."""

    words: tuple[str, ...]
    cost: str


@frozen
class Fitting:
    """A change with what the run then takes; `fits` is false of the smallest that was found where none fits."""

    change: Change
    found: Estimate
    fits: bool


def cheapest_change(
    settings: Mapping[str, Any],
    *,
    has_adapter: bool,
    max_length: int,
    limit: int,
    estimated: Callable[[Sequence[str]], Estimate],
) -> Fitting | None:
    """Try changes one by one, the cheapest first, then several together; None where nothing can be changed.

    Args:
        settings: of the recipe's run, with what is left to the defaults.
        has_adapter: whether the run trains one already.
        max_length: tokens of the longest row.
        limit: bytes that the run may take.
        estimated: what the run takes with settings more, as key=value.
    """
    smallest: Fitting | None = None
    for change in _changes(settings, has_adapter, max_length):
        try:
            found = estimated(change.words)
        except SFTCoreError:  # it does not go with something else in the recipe
            continue
        one = Fitting(change, found, found.memory.peak <= limit)
        if one.fits:
            return one
        if smallest is None or found.memory.peak < smallest.found.memory.peak:
            smallest = one
    return smallest


def _changes(settings: Mapping[str, Any], has_adapter: bool, max_length: int) -> Iterator[Change]:
    """All changes, then what they are together: each adds to those before it."""
    single = [
        *_checkpointing(settings),
        *_micro_batches(settings),
        *_of_optimizer(settings),
        *_adapters(has_adapter),
        *_shorter(max_length),
    ]
    yield from single
    together: dict[str, Change] = {}
    for change in single:
        keys = ",".join(word.partition("=")[0] for word in change.words)
        together = {key: one for key, one in together.items() if key != keys}
        before = list(together.values())
        together[keys] = change
        if before:
            words = [word for one in (*before, change) for word in one.words]
            yield Change(tuple(words), "; ".join(one.cost for one in (*before, change)))


def _checkpointing(settings: Mapping[str, Any]) -> Iterator[Change]:
    if not settings.get("gradient_checkpointing"):
        cost = "about a fifth slower, as activations are computed again in the backward pass"
        yield Change(("gradient_checkpointing=true",), cost)


def _micro_batches(settings: Mapping[str, Any]) -> Iterator[Change]:
    """Fewer rows at a time and as many in a step, and fewer at a time in evaluations."""
    size = int(settings["per_device_train_batch_size"])
    whole, evaluated = size * int(settings["gradient_accumulation_steps"]), int(settings["per_device_eval_batch_size"])
    for fewer in (one for one in range(size - 1, 0, -1) if whole % one == 0):
        words = [f"per_device_train_batch_size={fewer}", f"gradient_accumulation_steps={whole // fewer}"]
        if evaluated > fewer:
            words.append(f"per_device_eval_batch_size={fewer}")
        cost = (
            f"{counted(fewer)} at a time instead of {size}, which may use the device less; a step is {whole} as before"
        )
        yield Change(tuple(words), cost)
    if size == 1 and evaluated > 1:
        yield Change(("per_device_eval_batch_size=1",), "slower evaluations, one row at a time")


def counted(rows: int) -> str:
    """`1 row`, `2 rows`."""
    return "1 row" if rows == 1 else f"{rows} rows"


def _of_optimizer(settings: Mapping[str, Any]) -> Iterator[Change]:
    optim = str(getattr(settings.get("optim"), "value", settings.get("optim")))
    if optim.startswith("adamw_torch"):
        cost = "another optimizer, which keeps sums of rows and columns: the learning rate may have to be found again"
        yield Change(("optim=adafactor",), cost)


def _adapters(has_adapter: bool) -> Iterator[Change]:
    if has_adapter:
        return
    cost = "trains an adapter of rank 16 instead of all weights, for which learning_rate is usually 1e-4 or more"
    yield Change(("adapter=lora",), cost)
    if importlib.util.find_spec("bitsandbytes") is not None:
        yield Change(("adapter=qlora",), "trains an adapter on a base that is rounded to 4 bits, and is slower")


def _shorter(max_length: int) -> Iterator[Change]:
    half = max_length // 2
    while half >= _SHORTEST:
        yield Change((f"max_length={half}",), f"longer rows are cut to {half} tokens, and what is cut is not learned")
        half //= 2
