"""From selections to the plugins of a run: find each, refuse it or import it, and give it its options."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs

from sftcore.config.foreign.values import OF_PLUGINS
from sftcore.config.plugins.blocked import Blocklist
from sftcore.config.plugins.fitting import refuse_misfit
from sftcore.config.plugins.observed import loaded, observed
from sftcore.config.plugins.unread_groups import unread_groups
from sftcore.core.discovery import Catalog, PluginEntry
from sftcore.core.errors import (
    BlockedPluginError,
    BrokenPluginError,
    CheckError,
    PluginError,
    SFTCoreError,
    UnknownPluginError,
    problems_of,
    said_by,
)
from sftcore.core.plugin_class import build, options
from sftcore.core.registry import ActivePlugins, Bound
from sftcore.core.types import AUTO, Selection
from sftcore.util.process_state import left_as_found

OPEN = ("format", "attention")
"""Kinds for which a run may leave the choice open, by the name AUTO."""


def by_itself(entry: PluginEntry) -> ActivePlugins:
    """An installed plugin alone in a manager, with its own defaults: what it declares is asked before any is chosen.

    Raises:
        BrokenPluginError: it does not import, or does not fit the hooks.
    """
    return _alone(entry, loaded(entry))  # type: ignore[arg-type]  # classes are hashable


@functools.lru_cache(maxsize=64)
def _alone(entry: PluginEntry, cls: type[Any]) -> ActivePlugins:
    """Made once for each class: a run asks each installed plugin several times."""
    selection = Selection(entry.kind, entry.name, distribution=entry.distribution, default=True)
    return ActivePlugins([_made(selection, entry, cls, path=entry.label)])


def _made(selection: Selection, entry: PluginEntry, cls: type[Any], *, path: str) -> Bound:
    try:
        with left_as_found(f"{entry.label} {entry.version}, as it is made,"):
            plugin = build(cls, selection.options, path=path)
    except (SFTCoreError, KeyboardInterrupt):
        raise
    except BaseException as error:  # its own code: a factory of a default, a validator, __attrs_post_init__
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise BrokenPluginError(
            f"{entry.label} {entry.version} cannot be made ({frame.filename}:{frame.lineno}): {said_by(error)}.",
            where="" if path == entry.label else path,
            fix=f"Update or remove {entry.distribution}, or report this to its authors.",
        ) from error
    return refuse_misfit(Bound(selection, entry, plugin, observed))


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
        plugin_class = loaded(entry)
    except PluginError as error:
        error.where = selection.path
        raise
    given = options_from(entry, settings) or {}
    known = {name for one in options(plugin_class) for name in (one.name, one.alias)}
    if unknown := [name for name in given if name not in known]:
        fault = f'returned "{unknown[0]}", which is not an option of it'
        raise by_itself(entry).answers("options_from")[0].origin("options_from").fault(fault)
    selection = attrs.evolve(selection, options={**given, **selection.options})
    path = f"{selection.path or selection.kind}.{selection.name}"
    return _made(selection, entry, plugin_class, path=path)


def find(selection: Selection, catalog: Catalog, blocked: Blocklist) -> PluginEntry:
    """The installed plugin that a selection names.

    Raises:
        UnknownPluginError, DuplicatePluginError: there is none, or there are several.
        BlockedPluginError: it is blocked.
    """
    allowed = Catalog(tuple(entry for entry in catalog.entries if not blocked.blocks(entry)))
    try:
        return allowed.find(selection.kind, selection.name, selection.distribution, where=selection.path)
    except UnknownPluginError as error:
        name = OF_PLUGINS.get(selection.kind, {}).get(selection.name.lower())
        if name is not None and any(entry.name == name for entry in catalog.of_kind(selection.kind)):
            error.fix = f'Did you mean "{name}"? All names: sftcore list-plugins --kind {selection.kind}.'
            raise
        for group in unread_groups():
            if selection.name in group.names:
                error.fix = str(group)
                raise
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
