"""Patches that touch one model and nothing else: what a library replaced is found out, narrowed down, and taken back.

Libraries of kernels set functions and classes in transformers' own modules, where every other model of the process
finds them too. Here those modules get back what they had at once, and the layers of the one model get a forward of
their own that sees the replacement.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import define, field

if TYPE_CHECKING:
    import torch

_MISSING = object()
_SHARED = ("transformers.models.", "transformers.loss.", "torch.nn.functional")
"""Modules in which libraries of kernels put their replacements."""


@define
class InstancePatch:
    """What was set on the modules of one model, and what was there before."""

    _changes: list[tuple[Any, str, Any, Any]] = field(factory=list, repr=False)

    def set(self, target: torch.nn.Module, name: str, value: Any) -> None:
        """Set an attribute in the instance's own dictionary and remember what it held."""
        self._changes.append((target, name, vars(target).get(name, _MISSING), value))
        vars(target)[name] = value

    def note(self, target: torch.nn.Module, before: Mapping[str, Any]) -> None:
        """Remember what someone else set on `target` since its dictionary was `before`."""
        for name, value in vars(target).items():
            if before.get(name, _MISSING) is not value:
                self._changes.append((target, name, before.get(name, _MISSING), value))

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
            target, name, before, value = self._changes.pop()
            if vars(target).get(name, _MISSING) is not value:
                continue
            if before is _MISSING:
                del vars(target)[name]
            else:
                vars(target)[name] = before


@contextmanager
def confined_to(model: torch.nn.Module, patch: InstancePatch) -> Iterator[None]:
    """Whatever is patched inside stays with `model`: changes of its modules are noted in `patch`, shared ones undone.

    A function that was replaced in a module of transformers is given to those layers of `model` whose forward names it.
    """
    inner = list(model.modules())
    own = [dict(vars(module)) for module in inner]
    shared = _snapshot()
    try:
        yield
    finally:
        replaced = _restore(shared)
        for module, before in zip(inner, own, strict=True):
            patch.note(module, before)
    for module in inner:
        functions = replaced.get(type(module).__module__, {})
        if functions and (forward := _with_globals(type(module).forward, functions)):
            patch.set(module, "forward", types.MethodType(forward, module))


def _snapshot() -> dict[types.ModuleType, tuple[dict[str, Any], dict[type, dict[str, Any]]]]:
    """The names of every shared module, and the attributes of the classes that it defines."""
    found = {}
    for name, module in list(sys.modules.items()):
        # transformers' package folders are lazy and import what is asked of them; their files are plain modules
        if name.startswith(_SHARED) and type(module) is types.ModuleType:
            names = dict(vars(module))
            classes = [one for one in names.values() if isinstance(one, type) and one.__module__ == name]
            found[module] = (names, {one: dict(vars(one)) for one in classes})
    return found


def _restore(
    shared: Mapping[types.ModuleType, tuple[Mapping[str, Any], Mapping[type, Mapping[str, Any]]]],
) -> dict[str, dict[str, Any]]:
    """Put back every shared name that changed; the functions that stood there meanwhile, by module and name."""
    replaced: dict[str, dict[str, Any]] = {}
    for module, (names, classes) in shared.items():
        for name, value in list(vars(module).items()):
            if name in names and names[name] is not value:
                setattr(module, name, names[name])
                if not isinstance(value, type):
                    replaced.setdefault(module.__name__, {})[name] = value
        for one, attributes in classes.items():
            for name, value in list(vars(one).items()):
                if name in attributes and attributes[name] is not value:
                    setattr(one, name, attributes[name])
    return replaced


def _with_globals(function: Callable[..., Any], names: Mapping[str, Any]) -> Callable[..., Any] | None:
    """A copy of `function` that sees other values under these global names; None where it uses none of them."""
    code = getattr(function, "__code__", None)
    if not isinstance(function, types.FunctionType) or code is None or not set(names) & set(code.co_names):
        return None
    globals_ = {**function.__globals__, **names}
    copy = types.FunctionType(code, globals_, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__dict__.update(function.__dict__)
    copy.__doc__, copy.__qualname__, copy.__module__ = function.__doc__, function.__qualname__, function.__module__
    copy.__annotations__ = function.__annotations__
    return copy
