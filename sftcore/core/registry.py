"""From selections to active plugins: resolve, collect all claims, check conflicts, and only then register.

One fresh `pluggy.PluginManager` a run; nothing here is global, and nothing imports torch or transformers.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
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
    quoted,
)
from sftcore.core.hookspecs import LIFECYCLE, ONE_ANSWER, PROJECT, Hooks
from sftcore.core.plugin_class import build, options
from sftcore.core.types import KINDS, SLOTS, Plan, Problem, Selection

AUTO = "auto"
"""The name under which a format is chosen by the columns of the data."""


@frozen
class Bound:
    """A selection with the entry it resolved to and the plugin made from its options."""

    selection: Selection
    entry: PluginEntry
    plugin: Any = attrs.field(eq=False)

    def implements(self, hook: str) -> bool:
        """Whether the plugin answers this hook."""
        return hasattr(getattr(self.plugin, hook, None), f"{PROJECT}_impl")

    def source(self, hook: str) -> str:
        """`file:line` of the plugin's answer to this hook."""
        code = inspect.unwrap(getattr(self.plugin, hook).__func__).__code__
        return f"{code.co_filename}:{code.co_firstlineno}"


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
        for pattern in self.patterns:
            kind, _, name = pattern.partition(":")
            name, _, distribution = name.partition("@")
            if (kind, name) == (entry.kind, entry.name) and (
                not distribution or normalized(distribution) == normalized(entry.distribution)
            ):
                return True
        return False


class ActivePlugins:
    """The plugins of one run, registered in one manager."""

    def __init__(self, bound: Sequence[Bound], yielded: Sequence[tuple[Selection, Selection]] = ()) -> None:
        self.bound = tuple(bound)
        self.yielded = tuple(yielded)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        # pluggy calls the last one registered first; the recipe's order is what users expect
        for one in reversed(self.bound):
            self._register(one)
        self._refuse_unknown_hooks()
        self._refuse_second_answers()

    def answers(self, hook: str) -> tuple[Bound, ...]:
        """Who answers this hook, in the order in which they are asked."""
        return tuple(one for one in self.bound if one.implements(hook))

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
        answers = []
        for one in self.answers(hook):
            others = [other.plugin for other in self.bound if other is not one]
            # pluggy leaves answers that are None out
            answers += [(one, answer) for answer in self._manager.subset_hook_caller(hook, others)(**arguments)]
        return answers

    def problems(self, plan: Plan, probe: Any) -> list[Problem]:
        """What the plugins' `check` finds, each with its plugin as the place where none was given."""
        problems: list[Problem] = []
        for one in self.answers("check"):
            try:
                found = list(one.plugin.check(plan=plan, probe=probe))
            except Exception as error:  # a third party's check may raise anything; the others are asked all the same
                found = [Problem(f"its check failed: {type(error).__name__}: {error}.")]
            problems += [attrs.evolve(problem, where=problem.where or one.selection.label) for problem in found]
        return problems

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
                f'{one.entry.label} implements "{hook}", which is no hook.{nearest(hook, LIFECYCLE)}',
                where=one.selection.path,
                fix="Rename the method, or take @hookimpl off it.",
            ) from error

    def _refuse_second_answers(self) -> None:
        for hook in ONE_ANSWER:
            answers = self.answers(hook)
            if len(answers) > 1:
                last = answers[-1].entry
                raise ConflictError(
                    f"{len(answers)} plugins answer {hook}: {', '.join(one.entry.label for one in answers)}.",
                    fix=f"Only one may. Remove one of them, or --block {last.kind}:{last.name}.",
                )


def bind(selection: Selection, catalog: Catalog, blocked: Blocklist) -> Bound:
    """Resolve one selection: find it, refuse it if blocked or unavailable, import it, and give it its options."""
    entry = _find(selection, catalog, blocked)
    try:
        entry.require_available()
        plugin_class = entry.load()
    except PluginError as error:
        error.where = selection.path
        raise
    known = {option.name for option in options(plugin_class)}
    soft = {key: value for key, value in selection.field_options.items() if key in known}
    if soft:
        selection = attrs.evolve(selection, options={**soft, **selection.options})
    return Bound(selection, entry, build(plugin_class, selection.options, path=_options_path(selection)))


def _find(selection: Selection, catalog: Catalog, blocked: Blocklist) -> PluginEntry:
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


def resolve(selections: Sequence[Selection], catalog: Catalog, blocked: Blocklist) -> ActivePlugins:
    """The active plugins for these selections; defaults yield to explicit claims on the same slot.

    `format: auto` is left out: it is bound by `sftcore.data.format` once the columns are known.

    Raises:
        SFTCoreError: the one fault that was found, or CheckError with all of them.
    """
    bound, faults = [], []
    for selection in selections:
        if selection.kind == "format" and selection.name == AUTO:
            continue
        try:
            bound.append(bind(selection, catalog, blocked))
        except SFTCoreError as error:
            faults.append(error)
    if faults:
        raise_all(faults)
    kept, yielded = _settle(bound)
    return ActivePlugins(kept, yielded)


def raise_all(faults: Sequence[SFTCoreError], warnings: Sequence[Problem] = ()) -> None:
    """Raise the one fault as it is, or several as one CheckError; nothing where there is none."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise CheckError([Problem(fault.what, fault.where, fault.fix) for fault in faults] + list(warnings))


def _settle(bound: Sequence[Bound]) -> tuple[list[Bound], list[tuple[Selection, Selection]]]:
    """Who keeps their slots: (kept, (default, the choice it yields to))."""
    claims = [(slot, one) for one in bound for slot in _claims(one)]
    yielded: list[tuple[Selection, Selection]] = []
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
        if explicit:
            yielded += [(one.selection, explicit[0].selection) for one in holders if one.selection.default]
    gone = [default for default, _ in yielded]
    return [one for one in bound if one.selection not in gone], yielded


def _claims(one: Bound) -> Iterator[str]:
    if not one.implements("claims"):
        return
    try:
        slots = tuple(one.plugin.claims())
    except Exception as error:  # a third party's plugin may raise anything
        raise BrokenPluginError(
            f"{one.entry.label} cannot say which slots it claims: {type(error).__name__}: {error}.",
            where=one.selection.path,
            fix=f"Update or remove {one.entry.distribution}, or report this to its authors.",
        ) from error
    for slot in slots:
        if slot not in SLOTS:
            raise BrokenPluginError(
                f'{one.entry.label} claims "{slot}", which is no slot.{nearest(str(slot), SLOTS)}',
                fix=f"Slots: {quoted(SLOTS)}.",
            )
        yield slot


def _freeing(first: Bound, second: Bound, slot: str) -> str:
    """The option that frees the slot, if one of the two has a switch named like it; else: remove the second."""
    switch = slot.rpartition(".")[2]
    for one in (second, first):
        if getattr(one.plugin, switch, None) is True:
            option = f"{one.selection.kind}: {{{one.selection.name}: {{{switch}: false}}}}"
            return f"Free it with {option}, or remove one of them."
    return f"Remove one of them, or --block {second.selection.kind}:{second.selection.name}."


def _options_path(selection: Selection) -> str:
    return f"{selection.path}.{selection.name}" if selection.path else f"{selection.kind}.{selection.name}"
