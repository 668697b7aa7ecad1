"""The active plugins of a run: register them, collect all claims, let the defaults yield, and ask their hooks.

One fresh `pluggy.PluginManager` a run; nothing here is global, and nothing imports torch or transformers.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import pluggy
from attrs import frozen

from sftcore.core.discovery import PluginEntry
from sftcore.core.door import Origin, declared, located
from sftcore.core.errors import (
    BrokenPluginError,
    ConflictError,
    PluginError,
    SFTCoreError,
    nearest,
    problems_of,
    quoted,
)
from sftcore.core.hookspecs import ONE_ANSWER, PROJECT, Hooks
from sftcore.core.types import KINDS, SLOTS, Plan, Problem, Selection


@frozen
class Bound:
    """A selection with its entry and the plugin made from its options; `observed` is entered around its hooks."""

    selection: Selection
    entry: PluginEntry
    plugin: Any = attrs.field(eq=False)
    observed: Callable[[Origin], AbstractContextManager[Any]] = attrs.field(default=nullcontext, eq=False, repr=False)

    def implements(self, hook: str) -> bool:
        """Whether the plugin has a method for this hook: an answer, or a wrapper around the answers of others."""
        return self._marker(hook) is not None

    def wraps(self, hook: str) -> bool:
        """Whether that method is a wrapper."""
        marker = self._marker(hook) or {}
        return bool(marker.get("wrapper") or marker.get("hookwrapper"))

    def source(self, hook: str) -> str:
        """`file:line` of the plugin's method for this hook."""
        return located(getattr(self.plugin, hook, None))

    def origin(self, hook: str) -> Origin:
        """Where an answer to this hook comes from."""
        label = f"{self.entry.label} {self.entry.version}"
        where = "" if self.selection.default else self.selection.path
        return Origin(label, self.entry.distribution, where, hook, self.source(hook))

    def _marker(self, hook: str) -> dict[str, Any] | None:
        return getattr(getattr(self.plugin, hook, None), f"{PROJECT}_impl", None)


class _Manager(pluggy.PluginManager):
    """Looks for hooks in each class once: some forty managers of the same plugins are made before a run begins."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        return super().parse_hookimpl_opts(plugin, name) if name in _hooks_of(plugin.__class__) else None

    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
        return super().parse_hookspec_opts(module_or_class, name) if name in _hooks_of(module_or_class) else None


@functools.lru_cache(maxsize=256)
def _hooks_of(cls: Any) -> frozenset[str]:
    found = pluggy.PluginManager(PROJECT)
    return frozenset(
        name for name in dir(cls) if found.parse_hookimpl_opts(cls, name) or found.parse_hookspec_opts(cls, name)
    )


class ActivePlugins:
    """The plugins of one run, registered in one manager; a default whose slot another plugin claims steps back.

    Every hook is asked through pluggy. A hook that asks all plugins is called once for each that answers, so that it is
    known whose answer each is; wrappers are entered around each of these calls.
    """

    def __init__(self, bound: Sequence[Bound], yielded: Sequence[tuple[Selection, Selection]] = ()) -> None:
        self.bound = tuple(bound)
        self._manager = _Manager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        # pluggy calls the last one registered first; the recipe's order is what users expect
        for one in reversed(self.bound):
            self._manager.register(one.plugin, name=f"{one.entry.kind}:{one.entry.name}@{one.entry.distribution}")
        self.yielded = (*yielded, *self._settle())
        self._refuse_second_answers()

    def answers(self, hook: str) -> tuple[Bound, ...]:
        """Who answers this hook, in the order in which they are asked."""
        return tuple(one for one in self.bound if one.implements(hook) and not one.wraps(hook))

    def one(self, hook: str, *, leaves: Any = (), **arguments: Any) -> Any:
        """The answer of the one plugin that implements this hook; errors that `leaves` names are not put into words.

        Raises:
            PluginError: no plugin of the run answers it.
            FaultyPluginError: it raises an error, or answers what it may not.
        """
        if not (answering := self.answers(hook)):
            raise PluginError(f"no plugin of this run answers {hook}.", fix="Look at: sftcore explain RECIPE")
        call = functools.partial(getattr(self._manager.hook, hook), **arguments)
        return self._answered(answering[0], hook, call, leaves=leaves)

    def all(self, hook: str, **arguments: Any) -> list[tuple[Bound, Any]]:
        """Every answer to this hook that is not None, with whose it is, in recipe order."""
        return [(one, answer) for one in self._asked(hook) for answer in self.ask(one, hook, **arguments)]

    def ask(self, one: Bound, hook: str, **arguments: Any) -> list[Any]:
        """One plugin's answer to a hook that asks all; empty where it has none, or None. Raises as `one` does."""
        others = [other.plugin for other in self.answers(hook) if other is not one]
        call = functools.partial(self._manager.subset_hook_caller(hook, others), **arguments)
        answers = self._answered(one, hook, call, many=True)
        return [answer for answer in answers if answer is not None]

    def declared(self, hook: str, **arguments: Any) -> Any:
        """The one answer to a hook, or None where nobody answers."""
        return self.one(hook, **arguments) if self.answers(hook) else None

    def problems(self, plan: Plan, probe: Any) -> list[Problem]:
        """What the plugins' `check` finds, each with its plugin as the place where none was given."""
        problems: list[Problem] = []
        for one in self._asked("check"):
            try:
                answers = self.ask(one, "check", plan=plan, probe=probe)
            except SFTCoreError as error:  # the others are asked all the same
                problems += problems_of([error])
                continue
            label = one.selection.label
            problems += [attrs.evolve(each, where=each.where or label) for some in answers for each in some]
        return problems

    def having(self, one: Bound) -> ActivePlugins:
        """The same run with this plugin in the place of those of its kind."""
        others = [other for other in self.bound if other.selection.kind != one.selection.kind]
        bound = sorted([one, *others], key=lambda each: KINDS.index(each.selection.kind))
        return ActivePlugins(bound, self.yielded)

    def _asked(self, hook: str) -> tuple[Bound, ...]:
        """Who is asked: those who answer; where nobody does, the outermost wrapper, which is entered all the same."""
        return self.answers(hook) or tuple(one for one in self.bound if one.wraps(hook))[:1]

    def _answered(self, one: Bound, hook: str, call: Callable[[], Any], *, many: bool = False, leaves: Any = ()) -> Any:
        """What a hook answers when it is called, through the door; of `many` answers each."""
        hint, origin = declared(hook), one.origin(hook)
        if around := [each for each in self.bound if each.wraps(hook) and each is not one]:
            origin = attrs.evolve(origin, label=f"{origin.label} (or {around[0].entry.label}, which wraps it)")
        try:
            with one.observed(origin):
                found = call()
                if not many:
                    return origin.accepted(found, hint)
                silent = not found and one.implements(hook) and not one.wraps(hook) and not around
                return [origin.accepted(answer, hint) for answer in ([None] if silent else found or ())]
        except leaves:
            raise
        except BaseException as error:  # a third party's plugin may raise anything
            for frame, _ in traceback.walk_tb(error.__traceback__):  # a wrapper of another plugin may have raised it
                at = f"{frame.f_code.co_filename}:{frame.f_code.co_firstlineno}"
                one = next((each for each in self.bound if each.implements(hook) and each.source(hook) == at), one)
            named = one.origin(hook).named(error)
            raise named from (error.__cause__ if named is error else error)

    def _settle(self) -> list[tuple[Selection, Selection]]:
        """Unregister the defaults that yield: each with the explicit choice that claims its slot."""
        claims = [(slot, one) for one in self._asked("claims") for slot in self._claims(one)]
        yielding: list[tuple[Bound, Bound]] = []
        for slot in SLOTS:
            holders = [one for claimed, one in claims if claimed == slot]
            explicit = [one for one in holders if not one.selection.default]
            if len(explicit) > 1:
                first, second = explicit[:2]
                raise ConflictError(
                    f'{first.entry.label} and {second.entry.label} both claim the slot "{slot}".',
                    where=second.selection.path,
                    fix=_freeing(first, second, slot),
                )
            yielding += [(one, explicit[0]) for one in holders if explicit and one.selection.default]
        gone = {id(default.plugin): default.plugin for default, _ in yielding}
        for plugin in gone.values():
            self._manager.unregister(plugin)
        self.bound = tuple(one for one in self.bound if id(one.plugin) not in gone)
        return [(default.selection, winner.selection) for default, winner in yielding]

    def _claims(self, one: Bound) -> list[str]:
        slots: list[str] = [slot for answer in self.ask(one, "claims") for slot in answer]
        for slot in slots:
            if slot not in SLOTS:
                raise BrokenPluginError(
                    f'{one.entry.label} claims "{slot}", which is not a slot.{nearest(str(slot), SLOTS)}',
                    fix=f"Slots: {quoted(SLOTS)}.",
                )
        return slots

    def _refuse_second_answers(self) -> None:
        for hook in ONE_ANSWER:
            answers = self.answers(hook)
            if len(answers) > 1:
                last = answers[-1].entry
                raise ConflictError(
                    f"{len(answers)} plugins answer {hook}: {', '.join(one.entry.label for one in answers)}.",
                    fix=f"Only one may. Remove one of them, or --block {last.kind}:{last.name}.",
                )


def _freeing(first: Bound, second: Bound, slot: str) -> str:
    """The option that frees the slot, if one of the two has a switch named like it; else: remove the second."""
    switch = slot.rpartition(".")[2]
    for one in (second, first):
        if getattr(one.plugin, switch, None) is True:
            option = f"{one.selection.kind}: {{{one.selection.name}: {{{switch}: false}}}}"
            return f"Free it with {option}, or remove one of them."
    return f"Remove one of them, or --block {second.selection.kind}:{second.selection.name}."
