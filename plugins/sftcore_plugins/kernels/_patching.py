"""Patches that touch one model and nothing else: what a library replaced is found out, narrowed down, and taken back.

Libraries of kernels set functions and classes in transformers' own modules, where every other model of the process
finds them too. Here those modules get back what they had at once, and the layers of the one model get a forward of
their own that sees the replacement.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import define, field

if TYPE_CHECKING:
    import torch

_MISSING = object()
_SHARED = ("transformers.models.", "transformers.loss.", "torch.nn.functional")
"""Modules in which libraries of kernels put their replacements."""


@define
class InstancePatch:
    """What was set on the modules of one model, and what was there before: attributes, and the layers inside them."""

    _changes: list[tuple[Any, dict[str, Any], str, Any, Any]] = field(factory=list, repr=False)

    def set(self, target: torch.nn.Module, name: str, value: Any) -> None:
        """Set an attribute in the instance's own dictionary and remember what it held."""
        self._changes.append((target, vars(target), name, vars(target).get(name, _MISSING), value))
        vars(target)[name] = value

    def note(self, target: torch.nn.Module, before: Sequence[Mapping[str, Any]]) -> None:
        """Remember what someone else set on `target` since its dictionaries were `before`."""
        for current, held in zip(_dictionaries(target), before, strict=True):
            for name, value in current.items():
                if held.get(name, _MISSING) is not value:
                    self._changes.append((target, current, name, held.get(name, _MISSING), value))

    def extend(self, other: InstancePatch) -> None:
        """Take over the changes of another patch, as later ones."""
        self._changes += other._changes

    @property
    def modules(self) -> int:
        """How many modules were changed."""
        return len({id(target) for target, *_ in self._changes})

    def undo(self) -> None:
        """Put back what was there, the last change first; what others have set over it since stays."""
        while self._changes:
            _, current, name, before, value = self._changes.pop()
            if current.get(name, _MISSING) is not value:
                continue
            if before is _MISSING:
                del current[name]
            else:
                current[name] = before


def _dictionaries(module: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where a module keeps its attributes, and its layers."""
    return vars(module), module._modules


@contextmanager
def confined_to(model: torch.nn.Module, patch: InstancePatch) -> Iterator[None]:
    """Whatever is patched inside stays with `model`: changes of its modules are noted in `patch`, shared ones undone.

    A function that was replaced in a module of transformers is given to those layers of `model` whose forward names it.
    """
    inner = list(model.modules())
    own = [tuple(map(dict, _dictionaries(module))) for module in inner]
    shared = _snapshot()
    try:
        yield
    finally:
        replaced = _restore(shared)
        for module, before in zip(inner, own, strict=True):
            patch.note(module, before)
    for module in inner:
        functions = replaced.get(type(module).forward.__module__, {})
        if functions and (forward := _with_globals(type(module).forward, functions)):
            patch.set(module, "forward", types.MethodType(forward, module))


_Held: TypeAlias = "tuple[dict[str, Any], dict[type, dict[str, Any]], dict[str, dict[Any, Any]]]"


def _snapshot() -> dict[types.ModuleType, _Held]:
    """The names of every shared module, the attributes of the classes that it defines, and what its tables hold."""
    found = {}
    for name, module in list(sys.modules.items()):
        # transformers' package folders are lazy and import what is asked of them; their files are plain modules
        if name.startswith(_SHARED) and type(module) is types.ModuleType:
            names = dict(vars(module))
            classes = [one for one in names.values() if isinstance(one, type) and one.__module__ == name]
            tables = {key: _table(one) for key, one in names.items() if isinstance(one, dict) and key[:2] != "__"}
            found[module] = (names, {one: dict(vars(one)) for one in classes}, tables)
    return found


def _table(values: dict[Any, Any]) -> dict[Any, Any]:
    """What a dictionary holds. Some of transformers' make an instance of what is asked for, or list more than that."""
    return {key: dict.__getitem__(values, key) for key in dict.keys(values)}


def _restore(shared: Mapping[types.ModuleType, _Held]) -> dict[str, dict[str, Any]]:
    """Put back every shared name that changed; the functions that stood there meanwhile, by module and name."""
    replaced: dict[str, dict[str, Any]] = {}
    for module, (names, classes, tables) in shared.items():
        for name, value in list(vars(module).items()):
            if name in names and names[name] is not value:
                setattr(module, name, names[name])
                if not isinstance(value, type):
                    replaced.setdefault(module.__name__, {})[name] = value
        for one, attributes in classes.items():
            for name, value in list(vars(one).items()):
                if name in attributes and attributes[name] is not value:
                    setattr(one, name, attributes[name])
        for name, held in tables.items():
            for key, value in _table(names[name]).items():
                if key not in held:
                    del names[name][key]
                elif held[key] is not value:
                    names[name][key] = held[key]
    return replaced


def _with_globals(function: Any, names: Mapping[str, Any]) -> Callable[..., Any] | None:
    """A copy of `function` that sees other values under these global names; None where it uses none of them.

    Decorators around it are copied too, with the copy in the place of what they wrap.
    """
    if not isinstance(function, types.FunctionType):
        return None
    closure, globals_ = function.__closure__, function.__globals__
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None:
        copied = _with_globals(wrapped, names)
        if copied is None or not any(_holds(cell, wrapped) for cell in closure or ()):
            return None
        closure = tuple(types.CellType(copied) if _holds(cell, wrapped) else cell for cell in closure or ())
    elif not set(names) & _names_in(function.__code__):
        return None
    else:
        globals_ = {**globals_, **names}
    copy = types.FunctionType(function.__code__, globals_, function.__name__, function.__defaults__, closure)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__dict__.update(function.__dict__)
    if wrapped is not None:
        copy.__dict__["__wrapped__"] = copied
    copy.__doc__, copy.__qualname__, copy.__module__ = function.__doc__, function.__qualname__, function.__module__
    copy.__annotations__ = function.__annotations__
    return copy


def _holds(cell: types.CellType, value: Any) -> bool:
    try:
        return cell.cell_contents is value
    except ValueError:  # it is empty
        return False


def _names_in(code: types.CodeType) -> set[str]:
    """The global names of a function and of those that are defined inside it."""
    inner = (one for one in code.co_consts if isinstance(one, types.CodeType))
    return set(code.co_names).union(*map(_names_in, inner))
