"""What one rendering of a chat template may make, and how long it may take.

The code that a template is compiled to says what it makes, and asks before each step that may take a while. So a
template stops itself, in whatever thread or process it runs.
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
"""Of the thread's processor time, so that a busy machine stops no template."""
TOTAL = 2**30
"""Bytes that all steps of one rendering make together, whether they are kept or not."""
LARGEST = 2**26
"""Bytes that one step makes; also the characters of a rendered conversation."""
MAX_DEPTH = 64
"""Lists or mappings inside each other."""
SMALL = 2**12
"""Characters of a text that is counted only where it is put into something that grows."""
CHARACTER, VALUE = 4, 64
"""Bytes that they take at most; a value's with the reference to it."""
_LARGE = 2**20
_MARKED = 2**32
_BATCH = 64

T = TypeVar("T")


class LimitError(TemplateRuntimeError):
    """A template makes more, or takes longer, than it may."""


class _Clock:
    """Steps without end, with a look at the clock between some of them, and without a line of Python between others."""

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


_FIRST_STEPS = (None,) * _BATCH
_FURTHER_STEPS = _Clock()


def steps() -> Callable[[], None]:
    """For one rendering: said before each step that may take a while."""
    return chain(_FIRST_STEPS, _FURTHER_STEPS).__next__


class Rendering(Context):
    """Jinja's context of one rendering, with what it has made so far."""

    step: Callable[[], None]
    _left = TOTAL

    def made(self, value: T) -> T:
        """The value, which the template has just made."""
        size = value.__sizeof__() if type(value) is str else getsizeof(value)
        self._left = left = self._left - size
        if size > _LARGE or left < 0:
            self.admit(size, 0)
        return value

    def built(self, value: T) -> T:
        """The value, which the template has just made, perhaps of the same thing many times."""
        if type(value) in (list, tuple, dict):
            self.admit(weigh(value), 0)
        return self.made(value)

    def put(self, value: T) -> T:
        """The list or mapping that the template has just made of what is in it."""
        self.keep(chain(value, value.values()) if isinstance(value, dict) else value)  # type: ignore[arg-type]
        return self.built(value)

    def keep(self, values: Iterable[Any]) -> None:
        """Some may be small texts, which have not been counted yet."""
        for value in values:
            if isinstance(value, str) and len(value) < SMALL:
                self.made(value)

    def admit(self, size: int, kept: int | None = None) -> None:
        """The template makes so many bytes; or so many, of which fewer are kept.

        Raises:
            LimitError: they are too many.
        """
        self._left -= size if kept is None else kept
        if size > LARGEST:
            raise LimitError(f"it makes more than {LARGEST // 2**20} MiB in one step")
        if self._left < 0:
            raise LimitError(f"it makes more than {TOTAL // 2**20:,} MiB in all its steps together")
        if size > _LARGE:  # this takes as long as many steps
            for _ in _FIRST_STEPS:
                self.step()

    def text(self, value: Any) -> str:
        """What is written for the value."""
        return self.made(str(value))

    def joined(self, texts: list[str]) -> str:
        """What `~`, a macro or a captured block makes."""
        length = sum(map(len, texts))
        if length > LARGEST:
            self.admit(length)
        return self.made("".join(texts))


def conversation(written: Iterator[str]) -> str:
    """All that a template writes.

    Raises:
        LimitError: it is too much.
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
    """Of so many characters, with so many generation markers, each of which joins all that stands before it.

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
        LimitError: they are too many, or too deep inside each other.
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
            raise LimitError(f"it makes a list or mapping of more than {LARGEST // 2**20} MiB")
        if not inside:
            return total
        level = list(chain.from_iterable(inside))
    raise LimitError(f"it makes lists or mappings inside each other, more than {MAX_DEPTH} deep")
