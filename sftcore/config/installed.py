"""What installed plugins say of themselves before a run has chosen any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import frozen

from sftcore.config.plugins.blocked import Blocklist
from sftcore.config.plugins.bound import by_itself, find, options_from
from sftcore.config.plugins.declared import declared_attention
from sftcore.config.plugins.observed import loaded
from sftcore.core.discovery import Catalog, PluginEntry
from sftcore.core.errors import ConflictError, SFTCoreError
from sftcore.core.registry import ActivePlugins
from sftcore.core.types import AUTO, AttentionBackend, ModelRequest, Selection
from sftcore.util.warned import warn_broken


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

    def attention_named(
        self, name: str, model: ModelRequest, *, where: str
    ) -> tuple[PluginEntry | None, Mapping[str, Any]]:
        """The plugin of the attention that transformers knows under this name, and its options.

        That is the plugin of this name, or one that declares it, or one that takes options from it (the hook
        `options_from` is asked with `attn_implementation`); none where several plugins have the name.

        Raises:
            ConflictError: several declare it.
        """
        named = [entry for entry in self.catalog.of_kind("attention") if entry.name == name]
        if named:
            return (named[0] if len(named) == 1 else None), {}
        declared = self._backends(model)
        found = [entry for entry, backend in declared if backend is not None and backend.implementation == name]
        if (entry := _only(found, f'the attention "{name}"', where=where)) is not None:
            return entry, {}
        asked = self._asked("attention", "options_from", settings={"attn_implementation": name})
        taking = {entry: options for entry, options in asked if options}
        entry = _only(list(taking), f'the attention "{name}"', where=where)
        return entry, {} if entry is None else taking[entry]

    def attentions(self, model: ModelRequest) -> list[Selection]:
        """The attentions that `attention: auto` may take: they have what they need, and say how fast they are."""
        declared = self._backends(model)
        return [
            Selection("attention", entry.name, distribution=entry.distribution, path=AUTO, default=True)
            for entry, backend in declared
            if not entry.missing and backend is not None and (backend.speed or backend.padded_speed)
        ]

    def options_from(self, selection: Selection, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The options that fields give to the plugin of a selection; None where they do not ask for it."""
        try:
            entry = find(selection, self.catalog, self.blocked)
            loaded(entry)
        except SFTCoreError:
            return {}  # the registry says so, with whatever else is wrong
        return options_from(entry, settings)

    def _backends(self, model: ModelRequest) -> Iterator[tuple[PluginEntry, AttentionBackend | None]]:
        return self._each("attention", lambda plugins: declared_attention(plugins, model))

    def _asked(self, kind: str, hook: str, **arguments: Any) -> Iterator[tuple[PluginEntry, Any]]:
        return self._each(kind, lambda plugins: plugins.declared(hook, **arguments))

    def _each(self, kind: str, ask: Callable[[ActivePlugins], Any]) -> Iterator[tuple[PluginEntry, Any]]:
        """What is asked of each plugin of this kind; one that is broken is passed over with a warning."""
        for entry in self.catalog.of_kind(kind):
            if self.blocked.blocks(entry):
                continue
            try:
                answer = ask(by_itself(entry))
            except SFTCoreError as error:
                if not entry.missing:  # its module may well need what is missing
                    warn_broken(entry, error)
                continue
            yield entry, answer


def _only(found: list[PluginEntry], what: str, *, where: str) -> PluginEntry | None:
    found = sorted(found, key=lambda entry: not entry.is_own)
    if len(found) > 1:
        offers = ", ".join(f"{entry.name}@{entry.distribution}" for entry in found)
        kind = found[0].kind
        raise ConflictError(
            f"{len(found)} plugins are for {what}: {offers}.",
            where=where,
            fix=f"Choose one: {kind}: {found[0].name}@{found[0].distribution}",
        )
    return found[0] if found else None
