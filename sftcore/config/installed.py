"""What installed plugins say of themselves before a run has chosen any of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from sftcore.core.discovery import Catalog, PluginEntry
from sftcore.core.errors import ConflictError, SFTCoreError
from sftcore.core.registry import Blocklist, by_itself, find, options_from
from sftcore.core.types import ModelRequest, Selection


@frozen
class Installed:
    """All installed plugins and which of them are blocked."""

    catalog: Catalog
    blocked: Blocklist

    def loader_of(self, model: ModelRequest) -> PluginEntry | None:
        """The loader that says it loads a model of this name; None where none does.

        Raises:
            ConflictError: several do.
        """
        if model.name is None:
            return None
        found = [entry for entry, loads in self._asked("loader", "loads", request=model) if loads]
        return _only(found, f'the model "{model.name}"', where="model")

    def attention_named(self, name: str, model: ModelRequest, *, where: str) -> PluginEntry | None:
        """The attention that transformers knows under this name, where no plugin is called so.

        Raises:
            ConflictError: several declare it.
        """
        entries = self.catalog.of_kind("attention")
        if any(entry.name == name for entry in entries):
            return None
        declared = self._asked("attention", "attention_backend", request=model)
        found = [entry for entry, backend in declared if backend is not None and backend.implementation == name]
        return _only(found, f'the attention "{name}"', where=where)

    def options_from(self, selection: Selection, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The options that fields give to the plugin of a selection; None where they do not ask for it."""
        try:
            entry = find(selection, self.catalog, self.blocked)
            entry.load()
        except SFTCoreError:
            return {}  # the registry says so, with whatever else is wrong
        return options_from(entry, settings)

    def _asked(self, kind: str, hook: str, **arguments: Any) -> Iterator[tuple[PluginEntry, Any]]:
        """The answer of each plugin of this kind, or None; one that is broken is passed over with a warning."""
        for entry in self.catalog.of_kind(kind):
            if self.blocked.blocks(entry):
                continue
            try:
                answer = by_itself(entry).declared(hook, **arguments)
            except SFTCoreError as error:
                if not entry.missing:  # its module may well need what is missing
                    warnings.warn(f"a broken plugin is passed over. {error}", stacklevel=2)
                continue
            yield entry, answer


def _only(found: list[PluginEntry], what: str, *, where: str) -> PluginEntry | None:
    if len(found) > 1:
        offers = ", ".join(f"{entry.name}@{entry.distribution}" for entry in found)
        kind = found[0].kind
        raise ConflictError(
            f"{len(found)} plugins are for {what}: {offers}.",
            where=where,
            fix=f"Choose one: {kind}: {found[0].name}@{found[0].distribution}",
        )
    return found[0] if found else None
