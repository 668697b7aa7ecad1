"""Chat templates are foreign code: they run in Jinja's sandbox, and no single step of theirs makes much of little.

The sandbox keeps a template from files, processes and Python's inside. It does not keep it from `"x" * 10 ** 10`, from
a name that is joined with itself forty times, or from loops inside loops. Here each step that can make more than it was
given is measured first; how long all steps take together, `sftcore.chat.sandbox.watchdog` sees to.

Most of what templates do can make no more than the conversation holds, and this shows in their source (see
`sftcore.chat.sandbox.sizes`). Such steps stay as Jinja compiles them, so that usual templates run as fast as before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import Environment, Template, TemplateRuntimeError, TemplateSyntaxError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sftcore.chat.sandbox.compiler import MEASURED, OF_TEXTS, SEARCHES, Generator
from sftcore.chat.sandbox.filters import add_filters, add_globals
from sftcore.chat.sandbox.limits import (
    MAX_BITS,
    MAX_COMPARED,
    MAX_DEPTH,
    MAX_TEXT,
    MAX_VALUES,
    PERCENT,
    TooLargeError,
    admit_text,
    admit_width,
    has_wide_braces,
    too_wide,
)
from sftcore.chat.sandbox.sizes import LOOP_NUMBERS
from sftcore.chat.sandbox.watchdog import StoppedError, begin
from sftcore.core.errors import ModelError

MAX_SOURCE = 2**18
"""Characters of a template; the longest in use have some 30,000."""
MAX_OUTPUT = 2**26
"""Characters of a rendered conversation."""
_LARGE = 2**16
_BATCH = 64


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' environment for chat templates, with bounds. `made_large` says that some step made a long text."""

    code_generator_class = Generator
    intercepted_binops = frozenset({"*", "**", "%"})
    made_large = False
    namespace: type

    def concat(self, parts: list[str]) -> str:  # type: ignore[override]
        """What a macro or a block has written."""
        self.admit(sum(map(len, parts)))
        return "".join(parts)

    def plus(self, left: Any, right: Any) -> Any:
        """`left + right`."""
        if isinstance(left, str) and isinstance(right, str):
            self.admit(len(left) + len(right))
            return left + right
        return self.measured(left + right)

    def joined(self, *parts: Any) -> str:
        """`a ~ b ~ c`."""
        return self.concat(list(map(str, parts)))

    def measured(self, value: Any) -> Any:
        """The value, if it may be as large as it is, with everything in it counted as often as it is there."""
        self.admit(self._size(value))
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`*`, `**` and `%`, which can make much of little."""
        if operator == "%" and isinstance(left, str):
            values = right.values() if isinstance(right, Mapping) else _as_tuple(right)
            self.admit_format(left, values, PERCENT.search(left) is not None)
        elif operator == "**" and isinstance(right, int) and abs(right) * _bits(left) > MAX_BITS:
            raise TooLargeError(f"a number of more than {MAX_BITS:,} bits")
        elif operator == "*":
            self._admit_product(left, right)
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`: as the sandbox does it, which needs a microsecond even where nothing can be wrong."""
        kind = type(obj)
        if kind is dict:
            if attribute in obj and attribute not in _OF_DICT:
                return obj[attribute]
        elif (
            (kind is str and attribute in _OF_STR)
            or (kind is LoopContext and attribute in LOOP_NUMBERS)
            or (kind is self.namespace and attribute[:1] != "_")
        ):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                pass
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., Any] | None:
        """Methods that can make much of little, with their check; Jinja asks for every method that a template names."""
        if not isinstance(value, (MethodType, BuiltinMethodType)) or value.__name__ not in _METHODS:
            return None
        if value.__name__ == "join":
            return functools.partial(self.join, value)
        admit = _METHODS[value.__name__]
        call = super().wrap_str_format(value) or value

        def checked(*args: Any, **kwargs: Any) -> Any:
            admit(self, value.__self__, *args, **kwargs)
            return call(*args, **kwargs)

        return checked

    def of_text(self, context: Context, method: str, obj: Any, *args: Any) -> Any:
        """`obj.method(…)` for methods of texts; Jinja's own way takes thrice as long."""
        if type(obj) is str:
            if args and method in SEARCHES:
                self.admit_search(obj, args[0])
            return getattr(obj, method)(*args)
        return self.call(context, self.getattr(obj, method), *args)

    def join(self, join: Callable[[list[Any]], str], parts: Iterable[Any]) -> str:
        """`text.join(parts)`."""
        listed = list(parts)
        between: Any = join.__self__  # type: ignore[attr-defined]
        self.admit(sum(len(str(part)) + len(between) for part in listed))
        return join(listed)

    # --- Admission ------------------------------------------------------------------------------------------------
    def admit(self, length: int) -> None:
        """A text of so many characters.

        Raises:
            TooLargeError: they are too many.
        """
        admit_text(length)
        if length > _LARGE:
            self.made_large = True

    def _size(self, value: Any) -> int:
        """Characters of all texts in it."""
        characters, values, depth, level = 0, 0, 0, [value]
        while level:
            values, depth = values + len(level), depth + 1
            if depth > MAX_DEPTH:
                raise TooLargeError(f"lists or mappings inside each other, more than {MAX_DEPTH} deep")
            inside: list[Any] = []
            for one in level:
                if isinstance(one, (str, bytes)):
                    characters += len(one)
                elif isinstance(one, Mapping):
                    inside += [*one.keys(), *one.values()]
                elif isinstance(one, (list, tuple, set, frozenset)):
                    inside += one
                if characters > MAX_TEXT or values + len(inside) > MAX_VALUES:
                    raise TooLargeError(f"a list or mapping of over {MAX_VALUES:,} values or {MAX_TEXT:,} characters")
            level = inside
        return characters

    def _admit_product(self, left: Any, right: Any) -> None:
        for one, times in ((left, right), (right, left)):
            if isinstance(one, (str, bytes)) and isinstance(times, int):
                self.admit(len(one) * times)
            elif isinstance(one, (list, tuple)) and isinstance(times, int):
                self.admit(self._size(one) * times)
                if len(one) * times > MAX_VALUES:
                    raise TooLargeError(f"a list of more than {MAX_VALUES:,} values")
        if _bits(left) + _bits(right) > MAX_BITS:
            raise TooLargeError(f"a number of more than {MAX_BITS:,} bits")

    def admit_wide(self, text: str, width: Any = 0, *_: Any) -> None:
        """A text that is filled up."""
        admit_width(width)

    def admit_tabs(self, text: str, tabsize: Any = 8) -> None:
        """A text whose tabs are filled up."""
        admit_width(tabsize)
        self.admit(len(text) + text.count("\t") * int(tabsize))

    def admit_replace(self, text: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
        """A text in which something is replaced by something longer."""
        if len(new) > len(old):
            text = str(text)
            self.admit(len(text) + text.count(old) * (len(new) - len(old)))

    def admit_search(self, text: str, sought: Any = "", *_: Any, **more: Any) -> None:
        """A text in which something is looked for in a way that may compare every character with every other."""
        for one in (sought, *more.values()):
            if isinstance(one, str) and len(text) * len(one) > MAX_COMPARED:
                raise TooLargeError(f"over {MAX_COMPARED:,} comparisons of characters")

    def admit_format(self, pattern: str, values: Iterable[Any], is_wide: bool) -> None:
        """A pattern into which values are put, each perhaps often."""
        if is_wide:
            raise too_wide()
        longest = max((len(str(value)) for value in values), default=0)
        self.admit(len(pattern) + (pattern.count("%") + pattern.count("{")) * longest)

    def admit_str_format(self, pattern: str, *args: Any, **kwargs: Any) -> None:
        """`format` and `format_map`."""
        given = [*args, *kwargs.values()]
        values = [part for one in given for part in (one.values() if isinstance(one, Mapping) else [one])]
        self.admit_format(pattern, [*given, *values], has_wide_braces(pattern))

    def refuse(self, value: Any, *_: Any, **__: Any) -> None:
        """What no chat template has a use for."""
        raise TemplateRuntimeError("this method is not there for chat templates")


_METHODS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("to_bytes", "from_bytes", "fromkeys", *MEASURED), BoundedEnvironment.refuse),
    **dict.fromkeys(("format", "format_map"), BoundedEnvironment.admit_str_format),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), BoundedEnvironment.admit_wide),
    **dict.fromkeys(SEARCHES, BoundedEnvironment.admit_search),
    "expandtabs": BoundedEnvironment.admit_tabs,
    "replace": BoundedEnvironment.admit_replace,
}
"""What a method is asked before it is called. `join` has a way of its own: see wrap_str_format."""
_OF_STR = OF_TEXTS - SEARCHES
_OF_DICT = frozenset(dir(dict))


@functools.cache
def _environment() -> BoundedEnvironment:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs: Environment = _compile_jinja_template("").environment
    ours = BoundedEnvironment(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(extension) for extension in theirs.extensions.values()],
    )
    ours.filters |= theirs.filters
    ours.globals |= theirs.globals
    add_filters(ours)
    add_globals(ours)
    ours.namespace = ours.globals["namespace"] = _namespace(theirs.globals["namespace"])
    return ours


def _namespace(theirs: Any) -> type:
    class Namespace(theirs):  # type: ignore[misc]
        def __repr__(self) -> str:
            return "<Namespace>"  # Jinja's own prints what is inside, namespaces inside namespaces too

    return Namespace


# --- For callers ------------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=64)
def compiled(source: str) -> Template:
    """The template, ready to be rendered.

    Raises:
        ModelError: it is no template, or uses what a chat template may not.
    """
    if len(source) > MAX_SOURCE:
        raise _refused(f"it has {len(source):,} characters, and {MAX_SOURCE:,} are read")
    environment = _environment()  # first, as it imports transformers, which may take more than a template's time
    calls = begin()
    try:
        try:
            return environment.from_string(source)
        finally:
            calls.end()
    except StoppedError:
        raise _refused(calls.stopped()) from None
    except TemplateSyntaxError as error:
        raise _refused(f"line {error.lineno}: {error.message}") from None
    except Exception as error:  # Python's compiler and Jinja's raise many kinds
        raise _refused(f"{type(error).__name__}: {error}") from error


def counted(blocks: Iterable[str]) -> Iterator[str]:
    """The same blocks, of which somebody else keeps a list.

    Raises:
        TooLargeError: they are too long together.
    """
    length = 0
    for block in blocks:
        length += len(block)
        _admit_output(length)
        yield block


def text_of(blocks: Iterable[str], environment: Any) -> str:
    """What a template writes, joined.

    Raises:
        TooLargeError: it writes too much.
    """
    written = iter(blocks)
    batch = list(islice(written, _BATCH))
    if len(batch) < _BATCH and not environment.made_large:
        return "".join(batch)
    texts: list[str] = []
    length = 0
    while batch:
        if environment.made_large:
            _admit_output(length + sum(map(len, batch)))
        texts.append("".join(batch))
        length += len(texts[-1])
        _admit_output(length)
        batch = list(islice(written, _BATCH))
    return "".join(texts)


def _admit_output(length: int) -> None:
    if length > MAX_OUTPUT:
        raise TooLargeError(f"a conversation of more than {MAX_OUTPUT:,} characters")


def _refused(why: str) -> ModelError:
    return ModelError(f"the chat template cannot be used: {why}.", fix="Give another one with chat_template_path.")


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
