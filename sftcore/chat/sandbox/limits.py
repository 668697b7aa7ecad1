"""What one rendering of a chat template may make, and how long it may take.

The code that a template is compiled to calls `Rendering` for what it makes, and `step` before what may take long. So a
template stops itself, in whatever thread or process it runs: by an ordinary exception, and mostly at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, repeat
from sys import getsizeof
from typing import Any, TypeVar

from jinja2 import TemplateRuntimeError
from jinja2.runtime import Context, LoopContext
from jinja2.utils import Namespace

SECONDS = 3.0
"""Processor time of the thread, so that a busy machine stops no template."""
TOTAL = 2**30
"""Bytes that all steps of one rendering make together, whether they are kept or not."""
LARGEST = 2**26
"""Bytes that one step makes, and characters of a rendered conversation."""
MAX_DEPTH = 64
"""Lists or mappings inside each other."""
SMALL = 2**12
"""Characters of a text that is counted only once it is put into a list, a mapping or a namespace."""
CHARACTER, VALUE = 4, 64
"""Bytes that a character, and a value in a list, take at most."""
_LARGE = 2**20
_MARKED = 2**32
_BATCH = 64

T = TypeVar("T")


class LimitError(TemplateRuntimeError):
    """A template makes more, or takes longer, than it may."""


class _FurtherSteps:
    """Steps without end. Python code runs, and looks at the clock, only between batches of them."""

    def __iter__(self) -> Iterator[None]:
        return chain.from_iterable(self._batches())

    def _batches(self) -> Iterator[Iterator[None]]:
        began = time.monotonic()
        while time.monotonic() - began < SECONDS / 32:  # this clock is the cheaper one
            yield repeat(None, _BATCH)
        began = time.thread_time()
        while time.thread_time() - began < SECONDS:
            yield repeat(None, _BATCH)
        raise LimitError(f"it took longer than {SECONDS:g} s")


_FIRST_STEPS, _FURTHER_STEPS = (None,) * _BATCH, _FurtherSteps()


def steps() -> Callable[[], None]:
    """`step` for one rendering: it returns None until the time is up."""
    return chain(_FIRST_STEPS, _FURTHER_STEPS).__next__


class Rendering(Context):
    """Jinja's context of one rendering, which counts what is made."""

    step: Callable[[], None]
    _left = TOTAL

    def made(self, value: T) -> T:
        """Count a value that the template has just made, and return it."""
        size = value.__sizeof__() if type(value) is str else getsizeof(value)
        self._left = left = self._left - size
        if size > _LARGE or left < 0:
            self.admit(size, 0)
        return value

    def built(self, value: T) -> T:
        """The same for a value that may hold one thing many times."""
        if type(value) in (list, tuple, dict):
            self.admit(weigh(value), 0)
        return self.made(value)

    def put(self, value: T) -> T:
        """The same for a list or mapping that the template wrote down."""
        self.keep(chain(value, value.values()) if isinstance(value, dict) else value)  # type: ignore[arg-type]
        return self.built(value)

    def keep(self, values: Iterable[Any]) -> None:
        """Count the small texts among these values, as they are kept now."""
        for value in values:
            if isinstance(value, str) and len(value) < SMALL:
                self.made(value)

    def admit(self, size: int, counted: int | None = None) -> None:
        """Allow a step that makes `size` bytes, and count `counted` of them, or all.

        Raises:
            LimitError: they are too many.
        """
        self._left -= size if counted is None else counted
        if size > LARGEST:
            raise LimitError(f"it makes more than {LARGEST // 2**20} MiB in one step")
        if self._left < 0:
            raise LimitError(f"it makes more than {TOTAL // 2**20:,} MiB in all its steps together")
        if size > _LARGE:  # this takes as long as many small steps
            for _ in _FIRST_STEPS:
                self.step()

    def text(self, value: Any) -> str:
        """What is written for a value."""
        return self.made(str(value))

    def joined(self, texts: list[str]) -> str:
        """What `~`, a macro or a `{% set %}` block makes of its parts."""
        length = sum(map(len, texts))
        if length > LARGEST:
            self.admit(length)
        return self.made("".join(texts))


def conversation(written: Iterator[str]) -> str:
    """Everything that a template writes.

    Raises:
        LimitError: it is too long.
    """
    blocks = list(islice(written, _BATCH))
    last, length = len(blocks), sum(map(len, blocks))
    while last == _BATCH and length <= LARGEST:
        batch = list(islice(written, _BATCH))
        last, length = len(batch), length + sum(map(len, batch))
        blocks += batch
    admit_conversation(length)
    return "".join(blocks)


def admit_conversation(length: int, markers: int = 0) -> None:
    """Allow so many characters with so many generation markers, each of which joins all the text before it.

    Raises:
        LimitError: they are too many.
    """
    if length > LARGEST:
        raise LimitError(f"it makes a conversation of more than {LARGEST:,} characters")
    if length * markers > _MARKED:
        raise LimitError(f"it makes {markers:,} generation markers in {length:,} characters")


def weigh(value: Any) -> int:
    """Bytes of the value and of everything in it, each thing counted as often as it is there.

    Raises:
        LimitError: they are too many, or nested too deeply.
    """
    total, level = 0, [value]
    for _ in range(MAX_DEPTH):
        inside: list[Any] = []
        for one in level:
            if isinstance(one, (str, bytes)):
                total += CHARACTER * len(one)
            elif isinstance(one, dict):
                inside += (one.keys(), one.values())
            elif isinstance(one, (list, tuple)):
                inside.append(one)
            elif isinstance(one, Namespace):
                inside.append(one._Namespace__attrs.values())
            elif isinstance(one, LoopContext):
                raise LimitError("it makes a list or mapping of loops")
        total += VALUE * sum(map(len, inside))
        if total > LARGEST:
            raise LimitError(f"it makes or uses a value that needs more than {LARGEST // 2**20} MiB")
        if not inside:
            return total
        level = list(chain.from_iterable(inside))
    raise LimitError(f"it makes or uses lists or mappings that are nested more than {MAX_DEPTH} deep")
