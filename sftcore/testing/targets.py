"""Which plugins `sftcore plugin test` is asked to test: of a folder, of a distribution, or one by its name."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from sftcore.config.plugins.unread_groups import GROUPS, near_group, unread_groups
from sftcore.core.discovery import GROUP, PluginEntry, discover, normalized
from sftcore.core.errors import PluginError, UnknownPluginError, nearest, quoted
from sftcore.core.types import KINDS
from sftcore.testing.isolated import isolated


@frozen
class Target:
    """Plugins to test, and the folder of their distribution if it is not an installed one."""

    entries: tuple[PluginEntry, ...]
    folder: Path | None = None

    @property
    def tests(self) -> Path | None:
        """The author's own tests, where there are some."""
        found = self.folder / "tests" if self.folder else None
        return found if found and found.is_dir() else None


@contextlib.contextmanager
def found(target: str) -> Iterator[Target]:
    """What a target names; inside, the plugins of a folder are visible as if they were installed.

    Raises:
        PluginError: the folder has no pyproject.toml that offers a plugin, or nothing installed has this name.
    """
    folder = Path(target)
    is_name = Path(target).name == target and not (folder / "pyproject.toml").is_file()
    if not folder.is_dir() or (is_name and _named(target)):
        yield Target(_installed(target))
        return
    project = _project(folder)
    places = [str(place.resolve()) for place in (folder, folder / "src") if place.is_dir()]
    sys.path[:0] = places
    try:
        with isolated() as install:
            name, version = str(project["name"]), str(project.get("version", "0"))
            extras = project.get("optional-dependencies", {})
            metadata = "".join(
                f'Requires-Dist: {one.partition(";")[0].strip()}; extra == "{extra}"\n'
                for extra, needed in extras.items()
                for one in needed
            )
            install(_offered(project, folder), distribution=name, version=version, metadata=metadata)
            entries = [one for one in discover().entries if normalized(one.distribution) == normalized(name)]
            yield Target(tuple(entries), folder.resolve())
    finally:
        for place in places:
            sys.path.remove(place)


def _installed(target: str) -> tuple[PluginEntry, ...]:
    """The plugins of a distribution, or the one of this name: `name`, `kind:name`, each with `@distribution` or not."""
    named = _named(target)
    if not named:
        known = {name for one in discover().entries for name in (one.name, one.distribution)}
        name = target.rpartition(":")[2].partition("@")[0]
        for group in unread_groups():
            if name in group.names or normalized(name) == group.distribution:
                raise PluginError(str(group), fix="Mend it in its pyproject.toml, and install it again.")
        raise UnknownPluginError(
            f'no folder, installed distribution or plugin is named "{target}".{nearest(name, known)}',
            fix="All names: sftcore list-plugins.",
        )
    if len(named) > 1 and any(normalized(one.distribution) != normalized(target) for one in named):
        offers = quoted(f"{one.kind}:{one.name}@{one.distribution}" for one in named)
        raise PluginError(f'"{target}" is the name of {len(named)} plugins.', fix=f"Write one of {offers}.")
    return named


def _named(target: str) -> tuple[PluginEntry, ...]:
    entries = discover().entries
    kind, colon, rest = target.rpartition(":")
    name, _, distribution = rest.partition("@")
    return tuple(one for one in entries if normalized(one.distribution) == normalized(target)) or tuple(
        one
        for one in entries
        if one.name == name
        and (not colon or one.kind == kind)
        and normalized(distribution) in ("", normalized(one.distribution))
    )


def _project(folder: Path) -> Mapping[str, Any]:
    file = folder / "pyproject.toml"
    if not file.is_file():
        raise PluginError(
            f"the folder {folder} has no pyproject.toml.", fix="Name the folder of a distribution, or install it first."
        )
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        project: Mapping[str, Any] = toml.loads(file.read_text(encoding="utf-8")).get("project", {})
    except ValueError as error:
        raise PluginError(f"{file} cannot be read: {error}.") from error
    near = {group: near_group(group) for group in project.get("entry-points", {})}
    if misspelt := next((group for group, name in near.items() if name and name != group and name != GROUP), ""):
        raise PluginError(
            f'{file} has entry points of "{misspelt}", which nobody reads. Did you mean "{near[misspelt]}"?',
            fix=f"Groups: {', '.join(GROUPS)}.",
        )
    if "name" not in project or not _offered(project, folder):
        raise PluginError(
            f"{file} offers no plugin.",
            fix=f'Add an entry point, such as [project.entry-points."{GROUP}format"] with name = "module:Class".',
        )
    return project


def _offered(project: Mapping[str, Any], folder: Path) -> dict[str, Mapping[str, str]]:
    groups = {
        group.removeprefix(GROUP): points
        for group, points in project.get("entry-points", {}).items()
        if group.startswith(GROUP)
    }
    if unknown := sorted(set(groups) - set(KINDS)):
        raise PluginError(
            f'{folder / "pyproject.toml"} has entry points of "{GROUP}{unknown[0]}", which is no kind of plugin.'
            f"{nearest(unknown[0], KINDS)}",
            fix=f"Kinds: {', '.join(KINDS)}.",
        )
    return groups
