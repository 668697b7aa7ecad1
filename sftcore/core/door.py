"""The door between a run and its plugins: a hook's answer is checked here, and what it handed over is called here.

What is expected is read from the declarations in hookspecs and types; a fault is one error that names the plugin.
"""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

import attrs
from attrs import frozen

import sftcore.core.types
from sftcore.core.errors import FaultyPluginError, OptionTypeError, SFTCoreError, said_by
from sftcore.core.hookspecs import Hooks
from sftcore.core.options import arms_of, methods_of, structure, type_name

PASSED = ("OutOfMemoryError", "AcceleratorError")  # errors of torch, for which callers look by their class


@frozen
class Origin:
    """Whose hook it is: the plugin with its version, where a user chose it, and file and line of its method."""

    label: str
    distribution: str
    path: str
    hook: str
    at: str

    def fault(self, what: str, at: str = "", of: str | None = None) -> FaultyPluginError:
        """The error. `of` is the part of what the hook returned that is at fault, "" for all of it, None: the hook."""
        returned = "" if of is None else f"{of and f'the {of} in '}what "
        task = f"{returned}its {self.hook}{'' if of is None else ' returned'}"
        fix = f"Update or remove {self.distribution}, or report this to its authors (--traceback shows the way)."
        error = FaultyPluginError(f"{self.label}: {task} ({at or self.at}) {what}.", where=self.path, fix=fix)
        error.origin, error.at = self, at or self.at
        return error

    def named(self, error: BaseException, function: Any = None, of: str | None = None) -> BaseException:
        """What to raise for an error of the plugin's; our own, and those that callers look for, stay as they are."""
        known = isinstance(error, (SFTCoreError, KeyboardInterrupt)) or type(error).__name__ in PASSED
        if known or (isinstance(error, SystemExit) and type(error) is not SystemExit):  # signals, which are not its own
            return error
        at = located(function) or self.at
        file = at.rpartition(":")[0]
        lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
        return self.fault(f"raised {said_by(error)}", f"{file}:{lines[-1]}" if lines else at, of)

    def accepted(self, answer: Any, hint: Any, function: Any = None, of: str | None = None) -> Any:
        """The answer as declared, several things as a list, and functions in it as `Handed`.

        Raises:
            FaultyPluginError: it does not fit the declaration.
        """
        try:
            answer = _listed(answer, hint)
            if (answer is None and hint is Any) or inspect.isgenerator(answer) or inspect.iscoroutine(answer):
                raise OptionTypeError(f"expected {type_name(hint)}, got {type(answer).__name__} <not run>.")
            if hint is not NoneType:  # a function without a result may well return one
                structure(answer, hint, path="")
            for name, kind in fields(hint).items():
                structure(getattr(answer, name), kind, path=f"{hint.__name__}.{name}")
        except OptionTypeError as error:
            wanted, _, got = error.what.removeprefix("expected ").rstrip(".").partition(", got ")
            kind, _, said = got.partition(" ")
            short = f" {said}" if len(said) < 80 and said[:1] != "<" and "\n" not in said else ""
            come = "None" if kind == "NoneType" else f"{kind}{short}"
            inside = f" as {error.where}" if error.where else ""
            raise self.fault(f"returned {come}{inside}; expected {wanted}", located(function), of) from None
        return self._guarded(answer, hint, of="")

    def _guarded(self, answer: Any, hint: Any, of: str) -> Any:
        if returns := returned(hint):
            return Handed(answer, self, of, returns[0])
        if methods := methods_of(hint):
            of_type = {name: _resolved(getattr(hint, name).__annotations__["return"]) for name in methods}
            return SimpleNamespace(
                **{name: Handed(getattr(answer, name), self, name, of_type[name]) for name in methods}
            )
        calls = {
            name: self._guarded(value, arm, name)
            for name, kind in fields(hint).items()
            for arm in arms_of(kind)
            if returned(arm) and callable(value := getattr(answer, name))
        }
        return attrs.evolve(answer, **calls) if calls else answer


@frozen(eq=False, slots=False)
class Handed:
    """A function that a plugin handed over: what goes wrong in it names the plugin.

    `also`, if given, gets each answer and the arguments, and says what is wrong with it, "" if nothing is.
    """

    function: Callable[..., Any]
    origin: Origin
    of: str
    returns: Any
    also: Callable[..., str] | None = None

    def __attrs_post_init__(self) -> None:
        kinds = (get_origin(arm) or arm for arm in arms_of(self.returns))
        object.__setattr__(self, "kind", next(iter(kinds)))  # what need not be looked at

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            found = self.function(*args, **kwargs)
            if type(found) is not self.kind:
                found = self.origin.accepted(found, self.returns, self.function, self.of)
        except BaseException as error:  # a third party's function may raise anything
            if (named := self.origin.named(error, self.function, self.of)) is error:
                raise
            raise named from error
        if self.also is not None and (wrong := self.also(found, *args, **kwargs)):
            raise self.origin.fault(wrong, located(self.function), self.of)
        return found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "function":  # asked for while it is unpickled
            raise AttributeError(name)
        return getattr(self.function, name)


@functools.cache
def declared(hook: str) -> Any:
    """The type of a hook's answer."""
    return _resolved(getattr(Hooks, hook).__annotations__["return"])


@functools.cache
def returned(hint: Any) -> tuple[Any, ...]:
    """The type of what a function of this type returns, alone in a tuple; empty for what is not a function."""
    if "__call__" in methods_of(hint):
        return (_resolved(hint.__call__.__annotations__["return"]),)
    return (_resolved(get_args(hint)[-1]),) if get_origin(hint) is Callable else ()


@functools.cache
def fields(hint: Any) -> dict[str, Any]:
    """The types of the fields of one of sftcore's own classes, as far as they can be told without importing torch."""
    return {one.name: _resolved(one.type) for one in attrs.fields(hint)} if attrs.has(hint) else {}


def _resolved(annotation: Any) -> Any:
    names = {**vars(sftcore.core.types), "torch": sys.modules.get("torch")}
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"it": annotation}), names)["it"]
    except (NameError, AttributeError):  # torch is not imported, and may not be
        return Any


def _listed(value: Any, hint: Any) -> Any:
    """Several things as a list, where several may be answered; a single one, such as a text, counts as one of them."""
    item = next((get_args(arm)[0] for arm in arms_of(hint) if get_origin(arm) is Iterable), None)
    if item is None or isinstance(value, (list, NoneType)):
        return value
    if isinstance(value, item):
        return value if item in arms_of(hint) else [value]
    return list(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)) else value


def located(function: Any) -> str:
    """`file:line` of a function, a method, or a callable object's class; empty where it has no code in Python."""
    while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        function = function.func if isinstance(function, functools.partial) else function.__wrapped__
    function = getattr(function, "__func__", function)
    own = getattr(type(function), "__call__", None)  # noqa: B004  # the method is wanted
    code = getattr(function, "__code__", None) or getattr(own, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""
