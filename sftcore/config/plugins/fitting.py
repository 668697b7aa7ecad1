"""Whether a plugin's methods fit the hooks of this version: their names, their arguments, what its kind must have."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from sftcore.core.door import located
from sftcore.core.errors import BrokenPluginError, nearest, quoted
from sftcore.core.hookspecs import LIFECYCLE, Hooks
from sftcore.core.registry import Bound

ANSWERED_BY = {
    "format": "make_formatter",
    "collator": "make_collator",
    "loader": "load_model",
    "adapter": "wrap_model",
    "attention": "attention_backend",
    "loss": "make_loss",
}
"""What a plugin of a kind must answer. Kernels and noise, of which a run may have several, answer what they like."""


def refuse_misfit(one: Bound) -> Bound:
    """The plugin, if its methods fit the hooks.

    Raises:
        BrokenPluginError: a method is marked that is not a hook, one asks for what its hook does not give, or the one
            without which a plugin of this kind does nothing is missing.
    """
    for what, fix in _misfits(one):
        raise BrokenPluginError(f"{one.entry.label} {what}", where=one.selection.path, fix=fix)
    return one


def _misfits(one: Bound) -> Iterator[tuple[str, str]]:
    marked = [name for name in dir(one.plugin) if one.implements(name)]
    for name in marked:
        if name not in LIFECYCLE:
            what = f'implements "{name}", which is not a hook.{nearest(name, LIFECYCLE)}'
            yield what, "Rename the method, or take @hookimpl off it."
    for hook in marked:
        if said := _arguments(one, hook):
            at = located(getattr(one.plugin, hook))
            yield f"does not fit the hooks of this version: its {hook} ({at}) takes {said[0]}", said[1]
    needed = ANSWERED_BY.get(one.entry.kind)
    if needed is None and not marked:
        yield "implements no hook.", "Mark its methods with @hookimpl."
    elif needed is not None and (needed not in marked or one.wraps(needed)):
        unmarked = callable(getattr(one.plugin, needed, None))
        why = "its method has no @hookimpl" if unmarked and needed not in marked else "it has no method for it"
        fix = f"Write @hookimpl above {needed}" + (
            ", below @staticmethod or @classmethod." if _bound(one, needed) else "."
        )
        yield f"does not implement {needed}, as every {one.entry.kind} must: {why}.", fix


def _bound(one: Bound, name: str) -> bool:
    """Whether a method has a decorator that hides what stands above it."""
    return isinstance(inspect.getattr_static(one.plugin, name, None), (staticmethod, classmethod))


def _arguments(one: Bound, hook: str) -> tuple[str, str] | None:
    """What is wrong with the arguments that a method takes, and how to mend it."""
    known = [name for name in inspect.signature(getattr(Hooks, hook)).parameters if name != "self"]
    having = f"The hook has {quoted(known)}." if known else "The hook has no arguments."
    for parameter in inspect.signature(getattr(one.plugin, hook)).parameters.values():
        name, default = parameter.name, parameter.default is not parameter.empty
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue  # pluggy gives them nothing
        if parameter.kind is parameter.KEYWORD_ONLY and not (default and name not in known):
            return f"{quoted([name])} by keyword only.", 'Take the "*" out of its arguments.'
        if name not in known and not default:
            return f'"{name}", which the hook does not have.', f"{having}{nearest(name, known)}"
        if name in known and default:
            return f'"{name}" with a default, and would always get that.', f'Take the default of "{name}" out.'
    return None
