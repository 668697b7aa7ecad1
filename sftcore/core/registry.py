"""From selections to active plugins: resolve, register, collect all claims, and let the defaults yield.

One fresh `pluggy.PluginManager` a run; nothing here is global, and nothing imports torch or transformers.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import attrs
import pluggy
from attrs import frozen

from sftcore.core.discovery import Catalog, PluginEntry, normalized
from sftcore.core.errors import (
    BlockedPluginError,
    BrokenPluginError,
    CheckError,
    ConflictError,
    PluginError,
    RecipeError,
    SFTCoreError,
    UnknownPluginError,
    nearest,
    problems_of,
    quoted,
)
from sftcore.core.hookspecs import LIFECYCLE, ONE_ANSWER, PROJECT, Hooks
from sftcore.core.plugin_class import build
from sftcore.core.types import AUTO, KINDS, SLOTS, Plan, Problem, Selection

OPEN = ("format", "attention")
"""Kinds for which a run may leave the choice open, by the name AUTO."""


@frozen
class Bound:
    """A selection with the entry it resolved to and the plugin made from its options."""

    selection: Selection
    entry: PluginEntry
    plugin: Any = attrs.field(eq=False)

    def implements(self, hook: str) -> bool:
        """Whether the plugin has a method for this hook: an answer, or a wrapper around the answers of others."""
        return self._marker(hook) is not None

    def wraps(self, hook: str) -> bool:
        """Whether that method is a wrapper."""
        marker = self._marker(hook) or {}
        return bool(marker.get("wrapper") or marker.get("hookwrapper"))

    def source(self, hook: str) -> str:
        """`file:line` of the plugin's method for this hook."""
        code = inspect.unwrap(getattr(self.plugin, hook).__func__).__code__
        return f"{code.co_filename}:{code.co_firstlineno}"

    def _marker(self, hook: str) -> dict[str, Any] | None:
        return getattr(getattr(self.plugin, hook, None), f"{PROJECT}_impl", None)


@frozen
class Blocklist:
    """Plugins that must not be used, as `kind:name` or `kind:name@distribution`."""

    patterns: tuple[str, ...] = ()

    @classmethod
    def parse(cls, patterns: Iterable[str], *, where: str) -> Blocklist:
        """From a recipe's or the command line's patterns, and `SFTCORE_BLOCK` (separated by commas or spaces)."""
        patterns = tuple(patterns)
        environment = os.environ.get("SFTCORE_BLOCK", "").replace(",", " ").split()
        for source, found in ((where, patterns), ("SFTCORE_BLOCK", tuple(environment))):
            for pattern in found:
                kind, colon, name = pattern.partition(":")
                plugin = name.partition("@")[0]
                if not colon or kind not in KINDS or not plugin or plugin != plugin.strip():
                    raise RecipeError(
                        f'cannot block "{pattern}".',
                        where=source,
                        fix=f"Write kind:name, such as kernel:liger. Kinds: {', '.join(KINDS)}.{nearest(kind, KINDS)}",
                    )
        return cls((*patterns, *environment))

    def blocks(self, entry: PluginEntry) -> bool:
        """Whether this installed plugin is blocked."""
        plugin = f"{entry.kind}:{entry.name}"
        named = [pattern.partition("@")[2] for pattern in self.patterns if pattern.partition("@")[0] == plugin]
        return any(normalized(distribution) in ("", normalized(entry.distribution)) for distribution in named)

    def without_effect(self, entries: Sequence[PluginEntry]) -> list[str]:
        """What to say of each pattern that no installed plugin has; it may well be meant for another machine."""
        found = []
        for pattern in self.patterns:
            if not any(Blocklist((pattern,)).blocks(entry) for entry in entries):
                kind, _, name = pattern.partition(":")
                near = nearest(name.partition("@")[0], {entry.name for entry in entries if entry.kind == kind})
                found.append(f'block "{pattern}" has no effect: no such plugin is installed.{near}')
        return found


class ActivePlugins:
    """The plugins of one run, registered in one manager; a default whose slot another plugin claims steps back.

    Every hook is asked through pluggy. A hook that asks all plugins is called once for each that answers, so that it is
    known whose answer each is; wrappers are entered around each of these calls.
    """

    def __init__(self, bound: Sequence[Bound], yielded: Sequence[tuple[Selection, Selection]] = ()) -> None:
        self.bound = tuple(bound)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        # pluggy calls the last one registered first; the recipe's order is what users expect
        for one in reversed(self.bound):
            self._register(one)
        self._refuse_unknown_hooks()
        self.yielded = (*yielded, *self._settle())
        self._refuse_second_answers()

    def answers(self, hook: str) -> tuple[Bound, ...]:
        """Who answers this hook, in the order in which they are asked."""
        return tuple(one for one in self.bound if one.implements(hook) and not one.wraps(hook))

    def one(self, hook: str, **arguments: Any) -> Any:
        """The answer of the one plugin that implements this hook.

        Raises:
            PluginError: no plugin of the run answers it.
        """
        if not self.answers(hook):
            raise PluginError(f"no plugin of this run answers {hook}.", fix="Look at: sftcore explain RECIPE")
        return getattr(self._manager.hook, hook)(**arguments)

    def all(self, hook: str, **arguments: Any) -> list[tuple[Bound, Any]]:
        """Every answer to this hook that is not None, with whose it is, in recipe order."""
        return [(one, answer) for one in self._asked(hook) for answer in self.ask(one, hook, **arguments)]

    def ask(self, one: Bound, hook: str, **arguments: Any) -> list[Any]:
        """One plugin's answer to a hook that asks all; empty where it has none, or None."""
        others = [other.plugin for other in self.answers(hook) if other is not one]
        answers: list[Any] | None = self._manager.subset_hook_caller(hook, others)(**arguments)
        return answers or []  # a wrapper that returns nothing leaves none

    def declared(self, hook: str, **arguments: Any) -> Any:
        """The one answer to a hook that is asked before a run begins, or None where nobody answers.

        Raises:
            BrokenPluginError: whatever the plugin raised, with its name.
        """
        if not (answering := self.answers(hook)):
            return None
        with named(answering[0], f"answer {hook}"):
            return self.one(hook, **arguments)

    def problems(self, plan: Plan, probe: Any) -> list[Problem]:
        """What the plugins' `check` finds, each with its plugin as the place where none was given."""
        problems: list[Problem] = []
        for one in self._asked("check"):
            label = one.selection.label
            try:
                answers = self.ask(one, "check", plan=plan, probe=probe)
                found = [attrs.evolve(problem, where=problem.where or label) for some in answers for problem in some]
            except Exception as error:  # a third party's check may raise anything; the others are asked all the same
                found = [Problem(f"its check failed: {type(error).__name__}: {error}.", label)]
            problems += found
        return problems

    def having(self, one: Bound) -> ActivePlugins:
        """The same run with this plugin in the place of those of its kind."""
        others = [other for other in self.bound if other.selection.kind != one.selection.kind]
        bound = sorted([one, *others], key=lambda each: KINDS.index(each.selection.kind))
        return ActivePlugins(bound, self.yielded)

    def _asked(self, hook: str) -> tuple[Bound, ...]:
        """Who is asked: those who answer; where nobody does, the outermost wrapper, which is entered all the same."""
        return self.answers(hook) or tuple(one for one in self.bound if one.wraps(hook))[:1]

    def _register(self, one: Bound) -> None:
        # pluggy looks at positional parameters only: it would call the hook without the others
        for hook in filter(one.implements, LIFECYCLE):
            parameters = inspect.signature(getattr(one.plugin, hook)).parameters.values()
            if hidden := [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]:
                raise BrokenPluginError(
                    f"{one.entry.label} does not fit the hooks of this version: {hook} takes {quoted(hidden)} by "
                    "keyword only.",
                    where=one.selection.path,
                    fix='Take the "*" out of its arguments.',
                )
        try:
            self._manager.register(one.plugin, name=f"{one.entry.kind}:{one.entry.name}@{one.entry.distribution}")
        except pluggy.PluginValidationError as error:
            detail = " ".join(str(error).partition("\n")[2].split()) or str(error)
            raise BrokenPluginError(
                f"{one.entry.label} does not fit the hooks of this version: {detail}.",
                where=one.selection.path,
                fix="See the hook's arguments in the reference, or update the plugin.",
            ) from error

    def _refuse_unknown_hooks(self) -> None:
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            one = next(one for one in self.bound if one.plugin is error.plugin)
            names = {name for name in dir(one.plugin) if one.implements(name)} - set(LIFECYCLE)
            hook = sorted(names)[0]
            raise BrokenPluginError(
                f'{one.entry.label} implements "{hook}", which is not a hook.{nearest(hook, LIFECYCLE)}',
                where=one.selection.path,
                fix="Rename the method, or take @hookimpl off it.",
            ) from error

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
        with named(one, "say which slots it claims"):
            slots = [slot for answer in self.ask(one, "claims") for slot in answer]
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


@contextmanager
def named(one: Bound, task: str) -> Iterator[None]:
    """Name the plugin and its task in whatever it raises; our own errors say what is wrong by themselves."""
    try:
        yield
    except SFTCoreError:
        raise
    except Exception as error:  # a third party's plugin may raise anything
        raise BrokenPluginError(
            f"{one.entry.label} cannot {task}: {type(error).__name__}: {error}.",
            where=one.selection.path,
            fix=f"Update or remove {one.entry.distribution}, or report this to its authors.",
        ) from error


def by_itself(entry: PluginEntry) -> ActivePlugins:
    """An installed plugin alone in a manager, with its own defaults: what it declares is asked before any is chosen.

    Raises:
        BrokenPluginError: it does not import, or does not fit the hooks.
    """
    selection = Selection(entry.kind, entry.name, distribution=entry.distribution, default=True)
    return ActivePlugins([Bound(selection, entry, build(entry.load(), {}, path=entry.label))])


def options_from(entry: PluginEntry, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The options that fields of SFTConfig give to a plugin; None where they do not ask for it.

    Raises:
        SFTCoreError: what the plugin says is wrong with them.
    """
    plugins = by_itself(entry)
    if not plugins.answers("options_from"):
        return {}
    options: Mapping[str, Any] | None = plugins.declared("options_from", settings=settings)
    return options


def bind(
    selection: Selection, catalog: Catalog, blocked: Blocklist, settings: Mapping[str, Any] = MappingProxyType({})
) -> Bound:
    """Resolve one selection: find it, refuse it if blocked or unavailable, import it, and give it its options.

    Those of the selection come before those that `settings`, the fields of SFTConfig, give to the plugin.
    """
    entry = find(selection, catalog, blocked)
    try:
        entry.require_available()
        plugin_class = entry.load()
    except PluginError as error:
        error.where = selection.path
        raise
    selection = attrs.evolve(selection, options={**(options_from(entry, settings) or {}), **selection.options})
    path = f"{selection.path or selection.kind}.{selection.name}"
    return Bound(selection, entry, build(plugin_class, selection.options, path=path))


def find(selection: Selection, catalog: Catalog, blocked: Blocklist) -> PluginEntry:
    """The installed plugin that a selection names.

    Raises:
        UnknownPluginError, DuplicatePluginError: there is none, or there are several.
        BlockedPluginError: it is blocked.
    """
    allowed = Catalog(tuple(entry for entry in catalog.entries if not blocked.blocks(entry)))
    try:
        return allowed.find(selection.kind, selection.name, selection.distribution, where=selection.path)
    except UnknownPluginError:
        catalog.find(selection.kind, selection.name, selection.distribution, where=selection.path)
        raise BlockedPluginError(
            f"{selection.label} is blocked.",
            where=selection.path,
            fix=f"Choose another {selection.kind}, or unblock {selection.kind}:{selection.name}.",
        ) from None


def resolve(
    selections: Sequence[Selection],
    catalog: Catalog,
    blocked: Blocklist,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> ActivePlugins:
    """The active plugins for these selections; defaults yield to explicit claims on the same slot.

    What is left open (`format: auto`, `attention: auto`) is left out: it is bound once more is known.

    Raises:
        SFTCoreError: the one fault that was found, or CheckError with all of them.
    """
    bound, faults = [], []
    for selection in selections:
        if selection.kind in OPEN and selection.name == AUTO:
            continue
        try:
            bound.append(bind(selection, catalog, blocked, settings))
        except SFTCoreError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise CheckError(problems_of(faults))
    return ActivePlugins(bound)


def _freeing(first: Bound, second: Bound, slot: str) -> str:
    """The option that frees the slot, if one of the two has a switch named like it; else: remove the second."""
    switch = slot.rpartition(".")[2]
    for one in (second, first):
        if getattr(one.plugin, switch, None) is True:
            option = f"{one.selection.kind}: {{{one.selection.name}: {{{switch}: false}}}}"
            return f"Free it with {option}, or remove one of them."
    return f"Remove one of them, or --block {second.selection.kind}:{second.selection.name}."
