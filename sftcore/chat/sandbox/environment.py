"""Chat templates are foreign code: they run in transformers' sandbox, within limits.

The sandbox keeps a template from files, processes and Python's internals. It does not keep it from `"x" * 10 ** 10`,
from a name that is joined with itself forty times, or from loops inside loops: see `sftcore.chat.sandbox.limits`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any

from jinja2 import Template, TemplateSyntaxError
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import _PassArg, missing, pass_context

from sftcore.chat.sandbox.bounds import FILTERS, METHODS, percent, power, product
from sftcore.chat.sandbox.compiler import OF_MAPPINGS, Generator
from sftcore.chat.sandbox.limits import SMALL, VALUE, LimitError, Rendering, steps
from sftcore.config.settings.templates import MAX_SOURCE
from sftcore.core.errors import ModelError

_MAX_DATE = 1000
_FOR_WEB_PAGES = ("urlize", "urlencode", "xmlattr", "striptags", "wordwrap", "pprint")
_QUICK = frozenset(["length", "count", "default", "d", "first", "last", "attr", "random"])
_GOING_THROUGH = frozenset(["map", "select", "reject", "selectattr", "rejectattr", "batch", "slice", "unique", "items",
                            "list", "join", "sum", "sort", "groupby", "min", "max", "dictsort"])  # fmt: skip
_COMPARING = ("lower", "upper", "in", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<",
              "lt", "lessthan", "<=", "le")  # fmt: skip


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' environment for chat templates, within limits."""

    code_generator_class = Generator
    context_class = Rendering
    intercepted_binops = frozenset({"*", "**", "%"})
    steps = staticmethod(steps)
    namespace: type

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`*`, `**` and `%`, which can make much of little."""
        if operator == "*":
            context.admit(product(left, right))
        elif operator == "**":
            power(left, right)
        elif isinstance(left, str):
            context.admit(percent(left, right))
        return context.built(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call, but for those that have a shorter way below."""
        context.step()
        if obj is self.namespace:
            context.keep(kwargs.values())
        method: Any = getattr(obj, "__wrapped__", obj) if type(obj) is FunctionType else obj  # Jinja wraps `format`
        if type(method) not in (BuiltinMethodType, MethodType):
            return super().call(context, obj, *args, **kwargs)  # a macro counts by itself
        bound = METHODS.get(method.__name__)
        if bound is not None:
            args = tuple(list(given) if isinstance(given, Iterator) else given for given in args)
            context.admit(bound(method.__self__, *args, **kwargs))
        if isinstance(method.__self__, str):
            context.made(method.__self__)  # the method may return it in pieces
        return context.made(super().call(context, obj, *args, **kwargs))

    def of_text(self, context: Any, method: str, obj: Any, *args: Any) -> Any:
        """`obj.method(…)` for methods of texts: Jinja's own way takes three times as long."""
        if type(obj) is not str:
            return self.call(context, self.getattr(obj, method), *args)
        if len(obj) > SMALL:
            context.step()
        found = getattr(obj, method)(*args)
        if type(found) is str:
            return found if found is obj else context.made(found)
        if type(found) in (list, tuple):
            context.made(obj)  # in pieces
        return found

    def of_text_bounded(self, context: Any, method: str, obj: Any, *args: Any) -> Any:
        """The same for methods that have a bound."""
        if type(obj) is str:
            context.admit(METHODS[method](obj, *args))
        return self.of_text(context, method, obj, *args)

    def of_mapping(self, context: Any, method: str, obj: Any, *args: Any) -> Any:
        """The same for methods of mappings that change nothing."""
        if type(obj) is not dict:
            return self.call(context, self.getattr(obj, method), *args)
        context.step()
        return getattr(obj, method)(*args)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`, as the sandbox does it, which takes a microsecond even where nothing can be wrong."""
        if type(obj) is dict:
            if attribute in obj and attribute not in OF_MAPPINGS:
                return obj[attribute]
        elif type(obj) is self.namespace and attribute[:1] != "_":
            value = getattr(obj, attribute, missing)
            if value is not missing:
                return value
        return super().getattr(obj, attribute)


@functools.cache
def _environment() -> LimitedEnvironment:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs: Any = _compile_jinja_template("").environment
    ours: Any = LimitedEnvironment(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(extension) for extension in theirs.extensions.values()],
        optimized=False,  # Jinja would compute constants during compilation, where nothing is counted
    )
    filters = {name: inner for name, inner in theirs.filters.items() if name not in _FOR_WEB_PAGES}
    filters |= {"join": _join, "sum": _sum}
    ours.filters = {name: inner if name in _QUICK else _limited(name, inner) for name, inner in filters.items()}
    ours.filters["trim"] = _trim
    for name in ("lower", "upper"):
        ours.filters[name] = _cased(getattr(str, name), filters[name])
    ours.tests |= {name: _limited_test(ours.tests[name]) for name in _COMPARING}
    ours.globals = {name: theirs.globals[name] for name in ("range", "raise_exception")}
    ours.globals["dict"] = pass_context(lambda context, *args, **kwargs: context.put(dict(*args, **kwargs)))
    ours.globals["strftime_now"] = functools.partial(_now, theirs.globals["strftime_now"])
    ours.namespace = ours.globals["namespace"] = _namespace(theirs.globals["namespace"])
    return ours  # type: ignore[no-any-return]


# --- Filters, tests and functions -------------------------------------------------------------------------------------
def _limited(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    """The filter within limits. A lazy one gets a list: Python frees a tower of them by recursion, and crashes."""
    bound, goes_through, passed = FILTERS.get(name), name in _GOING_THROUGH, _PassArg.from_obj(inner)

    @pass_context
    def call(context: Any, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        if goes_through and isinstance(value, Iterator):
            value = list(value)
        context.step()
        if goes_through and isinstance(value, str):
            context.admit(VALUE * len(value))
        if bound is not None:
            context.admit(bound(value, *args, **kwargs))
        if passed is not None:
            own = {_PassArg.context: context, _PassArg.eval_context: context.eval_ctx}.get(passed, context.environment)
            return context.built(inner(own, value, *args, **kwargs))
        return context.built(inner(value, *args, **kwargs))

    return call


def _limited_test(inner: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def call(context: Any, value: Any, *args: Any) -> Any:
        context.step()
        return inner(value, *args)

    return call


def _cased(method: Callable[[str], str], inner: Callable[[Any], str]) -> Callable[..., Any]:
    @pass_context
    def call(context: Any, value: Any) -> Any:
        return context.made(method(value) if type(value) is str else inner(value))

    return call


@pass_context
def _trim(context: Any, value: Any, chars: str | None = None) -> Any:
    text = value if type(value) is str else str(value)
    if chars is not None:
        context.admit(METHODS["strip"](text, chars))
    if len(text) > SMALL:
        context.step()
    trimmed = text.strip(chars)
    return trimmed if trimmed is value else context.made(trimmed)


@pass_context
def _sum(context: Any, values: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    for value in _values(context, values, attribute):
        start = context.built(sum((value,), start))  # they may be lists
    return start


@pass_context
def _join(context: Any, values: Iterable[Any], d: Any = "", attribute: Any = None) -> str:
    texts = [value if type(value) is str else context.text(value) for value in _values(context, values, attribute)]
    context.admit(METHODS["join"](str(d), texts))
    return str(d).join(texts)


def _values(context: Any, values: Iterable[Any], attribute: Any) -> Iterable[Any]:
    if attribute is None:
        return values
    return map(make_attrgetter(context.environment, attribute), values)


def _now(now: Callable[[str], str], format: str) -> str:
    if len(format) > _MAX_DATE:
        raise LimitError(f"it makes a date from a pattern of more than {_MAX_DATE:,} characters")
    return now(format)


def _namespace(theirs: Any) -> type:
    class Namespace(theirs):  # type: ignore[misc]
        def __repr__(self) -> str:
            return "<Namespace>"  # Jinja's own shows what is inside, and namespaces inside namespaces

    return Namespace


# --- For callers ------------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=64)
def compiled(source: str) -> Template:
    """The template, ready to be rendered.

    Raises:
        ModelError: it is not a template, or uses what a chat template may not.
    """
    if len(source) > MAX_SOURCE:
        raise _refused(f"it has {len(source):,} characters, and at most {MAX_SOURCE:,} are read")
    try:
        return _environment().from_string(source)
    except TemplateSyntaxError as error:
        raise _refused(f"line {error.lineno}: {error.message}") from None
    except Exception as error:  # Python's compiler and Jinja's raise many kinds
        raise _refused(f"{type(error).__name__}: {error}") from error


def _refused(why: str) -> ModelError:
    return ModelError(f"the chat template cannot be used: {why}.", fix="Give another one with chat_template_path.")
