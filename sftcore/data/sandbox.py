"""Chat templates are foreign code: they run in Jinja's sandbox, and no single step of theirs makes much of little.

The sandbox keeps a template from files, processes and Python's inside. It does not keep it from `"x" * 10 ** 10`, from
a name that is joined with itself forty times, or from loops inside loops. Here each step that can make more than it was
given is measured first; how long all steps take together, `sftcore.data.watchdog` sees to.

Most of what templates do can make no more than the conversation holds, and this shows in their source (see
`sftcore.data.template_sizes`). Such steps stay as Jinja compiles them, so that usual templates run as fast as before.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import Environment, Template, TemplateError, TemplateRuntimeError, TemplateSyntaxError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sftcore.data.template_sizes import LOOP_NUMBERS, Sizes, leaves
from sftcore.errors import ModelError

MAX_SOURCE = 2**20
"""Characters of a template."""
MAX_TEXT = 2**24
"""Characters that one step may make."""
MAX_VALUES = 2**17
"""Values in one list or mapping, with all that is inside."""
MAX_OUTPUT = 2**26
"""Characters of a rendered conversation."""
_MAX_WIDTH = 10_000
_MAX_BITS = 4096
_LARGE = 2**16
_BATCH = 64
_UNUSED = ("urlize", "xmlattr", "striptags", "wordwrap", "pprint")
"""Filters for web pages that no chat template uses, and whose cost on hostile text nobody has looked at."""


class TooLargeError(TemplateRuntimeError):
    """A step of a template would make more than it may."""

    def __init__(self, what: str) -> None:
        super().__init__(f"it makes {what}")


class _Generator(CodeGenerator):
    """Compiles those operations with a check whose operands can have grown."""

    _sizes: Sizes

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        self._sizes = Sizes(node)
        super().visit_Template(node, frame)

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        if all(self._sizes.is_given(leaf) for leaf in leaves(node)):
            super().visit_Add(node, frame)
        else:
            self._call("plus", (node.left, node.right), frame)

    def visit_Mod(self, node: nodes.BinExpr, frame: Frame) -> None:
        if self._sizes.is_number(node.left):
            self.write("(")
            self.visit(node.left, frame)
            self.write(" % ")
            self.visit(node.right, frame)
            self.write(")")
        else:
            super().visit_Mod(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._call("joined", node.nodes, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._container(node, node.items, frame, super().visit_List)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        self._container(node, node.items if node.ctx == "load" else [], frame, super().visit_Tuple)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._container(node, [pair.value for pair in node.items], frame, super().visit_Dict)

    def _container(
        self, node: nodes.Expr, items: Iterable[nodes.Expr], frame: Frame, visit: Callable[[Any, Frame], None]
    ) -> None:
        grows = not all(self._sizes.is_given(item) for item in items)
        self.write("environment.measured(" if grows else "")
        visit(node, frame)
        self.write(")" if grows else "")

    def _call(self, name: str, arguments: Iterable[nodes.Expr], frame: Frame) -> None:
        self.write(f"environment.{name}(")
        for argument in arguments:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' environment for chat templates, with bounds. `made_large` says that some step made a long text."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"*", "**", "%"})
    made_large = False
    namespace: type

    def concat(self, parts: list[str]) -> str:  # type: ignore[override]
        """What a macro or a block has written."""
        self._admit(sum(map(len, parts)))
        return "".join(parts)

    def plus(self, left: Any, right: Any) -> Any:
        """`left + right`."""
        if isinstance(left, str) and isinstance(right, str):
            self._admit(len(left) + len(right))
            return left + right
        return self.measured(left + right)

    def joined(self, *parts: Any) -> str:
        """`a ~ b ~ c`."""
        return self.concat(list(map(str, parts)))

    def measured(self, value: Any) -> Any:
        """The value, if it may be as large as it is, with everything in it counted as often as it is there."""
        self._admit(self._size(value))
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`*`, `**` and `%`, which can make much of little."""
        if operator == "%" and isinstance(left, str):
            self.admit_format(left, right.values() if isinstance(right, Mapping) else _as_tuple(right), _PERCENT)
        elif operator == "**" and isinstance(right, int) and abs(right) * _bits(left) > _MAX_BITS:
            raise TooLargeError(f"a number of more than {_MAX_BITS:,} bits")
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
            return functools.partial(self._join, value)
        admit = _METHODS[value.__name__]
        call = super().wrap_str_format(value) or value

        def checked(*args: Any, **kwargs: Any) -> Any:
            admit(self, value.__self__, *args, **kwargs)
            return call(*args, **kwargs)

        return checked

    def _join(self, join: Callable[[list[Any]], str], parts: Iterable[Any]) -> str:
        listed = list(parts)
        between: Any = join.__self__  # type: ignore[attr-defined]
        self._admit(sum(len(str(part)) + len(between) for part in listed))
        return join(listed)

    # --- Admission ------------------------------------------------------------------------------------------------
    def _admit(self, length: int) -> None:
        if length > MAX_TEXT:
            raise TooLargeError(f"a text of more than {MAX_TEXT:,} characters")
        if length > _LARGE:
            self.made_large = True

    def _size(self, value: Any) -> int:
        """Characters of all texts in it."""
        characters, values, left = 0, 0, [value]
        while left:
            one = left.pop()
            values += 1
            if isinstance(one, (str, bytes)):
                characters += len(one)
            elif isinstance(one, Mapping):
                left += [*one.keys(), *one.values()]
            elif isinstance(one, (list, tuple, set, frozenset)):
                left += one
            if characters > MAX_TEXT or values + len(left) > MAX_VALUES:
                raise TooLargeError(f"a list or mapping of over {MAX_VALUES:,} values or {MAX_TEXT:,} characters")
        return characters

    def _admit_product(self, left: Any, right: Any) -> None:
        for one, times in ((left, right), (right, left)):
            if isinstance(one, (str, bytes)) and isinstance(times, int):
                self._admit(len(one) * times)
            elif isinstance(one, (list, tuple)) and isinstance(times, int):
                self._admit(self._size(one) * times)
                if len(one) * times > MAX_VALUES:
                    raise TooLargeError(f"a list of more than {MAX_VALUES:,} values")
        if _bits(left) + _bits(right) > _MAX_BITS:
            raise TooLargeError(f"a number of more than {_MAX_BITS:,} bits")

    def admit_width(self, text: str, width: Any = 0, *_: Any, **__: Any) -> None:
        """Of a text that is filled up."""
        if isinstance(width, int) and width > _MAX_WIDTH:
            raise TooLargeError(f"a width, or a count, of more than {_MAX_WIDTH:,}")

    def admit_tabs(self, text: str, tabsize: Any = 8) -> None:
        """Of a text whose tabs are filled up."""
        self.admit_width(text, tabsize)
        self._admit(len(text) + text.count("\t") * int(tabsize))

    def admit_replace(self, text: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
        """Of a text in which something is replaced by something longer."""
        if len(new) > len(old):
            text = str(text)
            self._admit(len(text) + text.count(old) * (len(new) - len(old)))

    def admit_format(self, pattern: str, values: Iterable[Any], wide: re.Pattern[str]) -> None:
        """Of a pattern into which values are put, each perhaps often."""
        if wide.search(pattern):
            raise TooLargeError(f"a width, or a count, of more than {_MAX_WIDTH:,}")
        longest = max((len(str(value)) for value in values), default=0)
        self._admit(len(pattern) + (pattern.count("%") + pattern.count("{")) * longest)

    def admit_str_format(self, pattern: str, *args: Any, **kwargs: Any) -> None:
        """Of `format` and `format_map`."""
        given = [*args, *kwargs.values()]
        values = [part for one in given for part in (one.values() if isinstance(one, Mapping) else [one])]
        self.admit_format(pattern, [*given, *values], _BRACES)

    def refuse(self, value: Any, *_: Any, **__: Any) -> None:
        """What no chat template has a use for."""
        raise TemplateRuntimeError("this method is not there for chat templates")


# --- Methods and filters ----------------------------------------------------------------------------------------------
_PERCENT = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*(?:\*|[0-9]{5})")
_BRACES = re.compile(r"\{[^{}]*(?:\{|:[^{}]*[0-9]{5})")
"""A width of five digits or more, or one that is itself a value."""
_METHODS: dict[str, Callable[..., None]] = {
    "format": BoundedEnvironment.admit_str_format,
    "format_map": BoundedEnvironment.admit_str_format,
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), BoundedEnvironment.admit_width),
    "expandtabs": BoundedEnvironment.admit_tabs,
    "join": BoundedEnvironment.refuse,  # replaced: see wrap_str_format
    "replace": BoundedEnvironment.admit_replace,
    **dict.fromkeys(("translate", "encode", "to_bytes", "fromkeys"), BoundedEnvironment.refuse),
}
_OF_STR = {name for name in dir(str) if not name.startswith("_")} - _METHODS.keys()
_OF_DICT = frozenset(dir(dict))


def _filters(environment: BoundedEnvironment) -> dict[str, Callable[..., Any]]:
    """Those of Jinja and transformers that can make much of little, each with its check."""
    known = environment.filters

    def checked(name: str, admit: Callable[..., None]) -> Callable[..., Any]:
        inner = known[name]

        @functools.wraps(inner)  # with what Jinja's decorators put on it: some filters are given the context first
        def call(*args: Any, **kwargs: Any) -> Any:
            admit(*args[1:] if hasattr(inner, "jinja_pass_arg") else args, **kwargs)
            return inner(*args, **kwargs)

        return call

    def admit_indent(text: str, width: Any = 4, *_: Any, **__: Any) -> None:
        environment.admit_width(text, width)
        environment._admit(len(text) + text.count("\n") * (len(width) if isinstance(width, str) else int(width)))

    def admit_json(value: Any, ensure_ascii: bool = False, indent: Any = None, *rest: Any, **more: Any) -> None:
        for filling in (indent, *rest, *more.values()):
            if (isinstance(filling, int) and filling > 16) or len(str(filling)) > 64:
                raise TooLargeError("an indent of more than 16")

    def admit_number(value: Any, number: Any = 0, *_: Any, **__: Any) -> None:
        environment.admit_width("", number)

    def join(value: Any, d: str = "", attribute: Any = None) -> str:
        parts = value if attribute is None else known["map"](context, value, attribute=attribute)
        return environment._join(str(d).join, map(str, parts))

    context = environment.context_class(environment, {}, None, {})
    return {
        "center": checked("center", lambda text, width=80: environment.admit_width(text, width)),
        "replace": checked("replace", environment.admit_replace),
        "format": checked("format", lambda text, *args, **kwargs: environment.admit_format(
            str(text), [*args, *kwargs.values()], _PERCENT)),
        "indent": checked("indent", admit_indent),
        "tojson": checked("tojson", admit_json),
        "batch": checked("batch", admit_number),
        "slice": checked("slice", admit_number),
        "round": checked("round", admit_number),
        "join": join,
    }  # fmt: skip


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
    ours.filters |= _filters(ours)
    ours.globals |= theirs.globals
    ours.namespace = _namespace(theirs.globals["namespace"])
    ours.globals |= {
        "namespace": ours.namespace,
        "dict": lambda *args, **kwargs: ours.measured(dict(*args, **kwargs)),
    }
    for name in _UNUSED:
        del ours.filters[name]
    for name in ("lipsum", "cycler", "joiner"):
        del ours.globals[name]
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
    try:
        return _environment().from_string(source)
    except TemplateSyntaxError as error:
        raise _refused(f"line {error.lineno}: {error.message}") from None
    except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError, OverflowError) as error:
        raise _refused(f"{type(error).__name__}: {error}") from None


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
