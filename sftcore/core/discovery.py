"""Which plugins are installed, read from metadata alone: no plugin is imported here."""

from __future__ import annotations

import functools
import importlib.metadata
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from attrs import frozen

from sftcore.core.errors import (
    BrokenPluginError,
    DuplicatePluginError,
    UnavailablePluginError,
    UnknownPluginError,
    nearest,
    quoted,
    said_by,
)
from sftcore.core.plugin_class import is_plugin
from sftcore.core.types import KINDS

GROUP = "sftcore."


@frozen
class PluginEntry:
    """An installed plugin, not imported. `missing` are requirements of its extra that are not met."""

    kind: str
    name: str
    distribution: str
    version: str
    value: str
    missing: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """`kind "name@distribution"`."""
        return f'{self.kind} "{self.name}@{self.distribution}"'

    @property
    def is_own(self) -> bool:
        """Whether it came with sftcore."""
        return normalized(self.distribution) == __name__.partition(".")[0]

    def require_available(self) -> None:
        """Raise UnavailablePluginError, with the command that mends it, unless all requirements are met."""
        if self.missing:
            raise UnavailablePluginError(
                f'{self.kind} "{self.name}" needs {", ".join(self.missing)}.',
                fix=f'Install: pip install "{self.distribution}[{self.name}]"',
            )

    def load(self) -> type[Any]:
        """Import the plugin's module and return its class.

        Raises:
            BrokenPluginError: it does not import, or is not a plugin class.
        """
        module_name, _, attribute = self.value.partition(":")
        try:
            obj: Any = functools.reduce(
                getattr, filter(None, attribute.split(".")), importlib.import_module(module_name)
            )
            if isinstance(obj, types.ModuleType):
                raise TypeError(f"{self.value} is a module; an entry point names a class in it, as MODULE:CLASS")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a third party's module may raise anything
            raise BrokenPluginError(
                f"{self.label} cannot be imported from {self.value}: {said_by(error)}.",
                fix=f"Update or remove {self.distribution}, or report this to its authors.",
            ) from error
        if not is_plugin(obj):
            raise BrokenPluginError(
                f"{self.label} points to {self.value}, which is not a plugin class.",
                fix="Decorate the class with @sftcore.plugin.",
            )
        return obj  # type: ignore[no-any-return]


@frozen
class Catalog:
    """All installed plugins."""

    entries: tuple[PluginEntry, ...]

    def of_kind(self, kind: str) -> tuple[PluginEntry, ...]:
        """The entries of one kind, sorted by name, then distribution."""
        return tuple(entry for entry in self.entries if entry.kind == kind)

    def find(self, kind: str, name: str, distribution: str | None = None, *, where: str = "") -> PluginEntry:
        """The one entry of this kind and name, from this distribution where one is given.

        Raises:
            UnknownPluginError: there is none; the nearest name is offered.
            DuplicatePluginError: several distributions offer it and none was named.
        """
        anywhere = [entry for entry in self.of_kind(kind) if entry.name == name]
        if not anywhere:
            names = {entry.name for entry in self.of_kind(kind)}
            raise UnknownPluginError(
                f'there is no {kind} named "{name}".',
                where=where,
                fix=f"{nearest(name, names)} All names: sftcore list-plugins --kind {kind}.".strip(),
            )
        wanted = normalized(distribution or "")
        named = [entry for entry in anywhere if wanted in ("", normalized(entry.distribution))]
        if not named:
            raise UnknownPluginError(
                f'there is no {kind} named "{name}" in the distribution "{distribution}".',
                where=where,
                fix=f"It comes from: {quoted(entry.distribution for entry in anywhere)}.",
            )
        if len(named) > 1 and len({entry.distribution for entry in named}) == 1:
            raise DuplicatePluginError(
                f'{named[0].distribution} declares {kind} "{name}" twice: {quoted(entry.value for entry in named)}.',
                where=where,
                fix="Remove one of these entry points.",
            )
        own = [entry for entry in named if entry.is_own]
        if len(named) > 1 and not own:
            offers = ", ".join(f"{entry.name}@{entry.distribution}" for entry in named)
            raise DuplicatePluginError(
                f'{len(named)} distributions offer {kind} "{name}": {offers}.',
                where=where,
                fix=f"Pick one: {kind}: {name}@{named[0].distribution}",
            )
        return (own or named)[0]  # a name keeps its meaning when another distribution offers it too


def normalized(distribution: str) -> str:
    """A distribution's name as the packaging specification compares it.

    >>> normalized("Acme_Formats")
    'acme-formats'
    """
    return distribution.lower().replace("_", "-").replace(".", "-")


def discover(path: list[str] | None = None, also: Callable[[str, Any], object] = lambda text, of: None) -> Catalog:
    """Read all installed plugins from entry points.

    Args:
        path: folders to search instead of `sys.path`.
        also: is given the entry points of every distribution, and the distribution, so that each is read once.

    A distribution that stands twice on the path counts once, the first one found, as Python itself would import it.
    """
    finder = importlib.metadata.distributions() if path is None else importlib.metadata.distributions(path=path)
    seen: set[str] = set()
    entries: list[PluginEntry] = []
    for distribution in finder:
        also(text := _text(distribution, "entry_points.txt"), distribution)
        if not text or GROUP not in text:
            continue
        metadata = _headers(distribution)
        name = metadata.get("name", ["?"])[0]
        if normalized(name) in seen:
            continue
        seen.add(normalized(name))
        version = metadata.get("version", ["?"])[0]
        requirements = metadata.get("requires-dist", [])
        entries += [
            PluginEntry(kind, entry, name, version, value, _missing(entry, requirements))
            for kind, entry, value in _parse(text)
        ]
    return Catalog(tuple(sorted(entries, key=lambda entry: (KINDS.index(entry.kind), entry.name, entry.distribution))))


def _parse(text: str) -> Iterator[tuple[str, str, str]]:
    """(kind, name, value) of the sftcore groups in an entry_points.txt."""
    kind = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
            kind = group[len(GROUP) :] if group.startswith(GROUP) else ""
        elif kind in KINDS and line and line[0] not in "#;":
            name, _, value = line.partition("=")
            yield kind, name.strip(), value.partition("[")[0].strip()


def _text(distribution: importlib.metadata.Distribution, file: str) -> str:
    """A metadata file's text, empty where it is absent or not UTF-8: one odd distribution must not hide the others."""
    try:
        return distribution.read_text(file) or ""
    except UnicodeDecodeError:
        return ""


def _headers(distribution: importlib.metadata.Distribution) -> dict[str, list[str]]:
    # importlib.metadata parses the whole file, README included, as an e-mail: 20 times slower than reading its head
    found: dict[str, list[str]] = {}
    for line in (_text(distribution, "METADATA") or _text(distribution, "PKG-INFO")).splitlines():
        if not line:
            break
        key, colon, value = line.partition(": ")
        if colon and not line[0].isspace():
            found.setdefault(key.lower(), []).append(value.strip())
    return found


def _missing(extra: str, requirements: Iterable[str]) -> tuple[str, ...]:
    """Requirements of the extra named like the plugin that the environment does not meet."""
    # metadata hold an extra's normalised name: absent_too stands there as absent-too
    candidates = [text for text in requirements if "extra" in text and normalized(extra) in normalized(text)]
    if not candidates:
        return ()
    from packaging.requirements import InvalidRequirement, Requirement

    missing = []
    for text in candidates:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            missing.append(text)
            continue
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}) or not marker.evaluate({"extra": extra}):
            continue
        version = _installed(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            has = "" if version is None else f" (found {version})"
            missing.append(f"{requirement.name}{requirement.specifier}{has}")
    return tuple(missing)


def _installed(distribution: str) -> str | None:
    try:
        return _headers(importlib.metadata.distribution(distribution)).get("version", [None])[0]
    except importlib.metadata.PackageNotFoundError:
        return None
