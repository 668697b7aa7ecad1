"""Columns that a run keeps for its own code (`remove_unused_columns: false`), and that do not reach that code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType
from typing import Any

from sftcore.core.errors import ConflictError
from sftcore.data.store.beside import reads_tokens_alone
from sftcore.train.own.methods import is_overridden

_READ_BATCHES = ("compute_loss", "training_step", "prediction_step")
_MAKE_BATCHES = ("get_train_dataloader", "get_batch_samples", "_prepare_inputs", "_get_dataloader")


def refuse_columns_left_out(trainer: Any, own: type) -> None:
    """Refuse methods of a subclass that name a column which the run's own collator leaves out of its batches.

    Args:
        trainer: of the class `own`, or of a subclass.
        own: the class whose own methods name no column.

    Raises:
        ConflictError: with the column and the method.
    """
    columns = sorted({column for names in trainer.data.beside.values() for column in names})
    if not columns or not reads_tokens_alone(trainer.setup.plan) or is_overridden(trainer, own, *_MAKE_BATCHES):
        return
    for function in _methods(type(trainer), own, _READ_BATCHES):
        texts = set(_texts(function.__code__))
        if named := [name for name in columns if name in texts]:
            why = "rows are packed" if trainer.packed else "the run's own collator makes batches of tokens alone"
            fix = "Give a data_collator that puts it into the batch"
            raise ConflictError(
                f'{function.__qualname__} names the column "{named[0]}", which does not reach it, because {why}.',
                where="remove_unused_columns: false",
                fix=f"{fix}, and do not pack." if trainer.packed else f"{fix}.",
            )


def _methods(trainer: type, own: type, starts: Sequence[str]) -> Iterator[FunctionType]:
    """The user's methods of these names, and the functions of the user's that they call, each once."""
    subclasses = trainer.__mro__[: trainer.__mro__.index(own)] if own in trainer.__mro__ else ()
    held = {name: value for one in reversed(subclasses) for name, value in vars(one).items()}
    waiting = [held[name] for name in starts if name in held]
    seen: set[Any] = set()
    while waiting:
        function = _function(waiting.pop())
        if function is None or function in seen:
            continue
        seen.add(function)
        yield function
        beside = {**function.__globals__, **held}
        called = [beside[name] for code in _codes(function.__code__) for name in code.co_names if name in beside]
        waiting += [one for one in called if getattr(one, "__module__", None) == function.__module__]


def _function(value: Any) -> FunctionType | None:
    inner: Callable[..., Any] = getattr(value, "__func__", value)
    inner = getattr(inner, "__wrapped__", inner)
    return inner if isinstance(inner, FunctionType) else None


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of those within it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


def _texts(code: CodeType) -> Iterator[str]:
    """The texts that stand in a function."""
    for one in _codes(code):
        for value in one.co_consts:
            several = value if isinstance(value, (tuple, frozenset)) else (value,)
            yield from (text for text in several if isinstance(text, str))
