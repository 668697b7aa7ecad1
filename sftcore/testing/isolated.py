"""Plugins made visible to discovery as if a distribution of their own were installed, and others hidden."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import itertools
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import define

from sftcore.core.discovery import GROUP, Catalog, discover, normalized
from sftcore.core.types import KINDS

_numbers = itertools.count()


@define
class IsolatedPlugins:
    """Discovery finds sftcore's own plugins and those that were installed here; called, it installs some.

    >>> from sftcore import plugin
    >>> @plugin
    ... class Hiss:
    ...     '''Noise.'''
    >>> with isolated() as plugins:
    ...     plugins(noise={"hiss": Hiss}).find("noise", "hiss").label
    'noise "hiss@under-test"'
    """

    folder: Path

    def __call__(
        self,
        plugins: Mapping[str, Mapping[str, type | str]] | None = None,
        *,
        distribution: str = "under-test",
        version: str = "0",
        metadata: str = "",
        **kinds: Mapping[str, type | str],
    ) -> Catalog:
        """Install plugins, and say what discovery then finds; one that is there already stays as it is.

        Args:
            distribution, version: of the distribution that offers them.
            metadata: further lines of its METADATA, such as `Provides-Extra`.
            plugins, kinds: for each kind its plugins by name: classes, or entry points such as "module:Class".
        """
        kinds = {**(plugins or {}), **kinds}
        if unknown := set(kinds) - set(KINDS):
            raise TypeError(f"no kind of plugin: {', '.join(sorted(unknown))}; kinds: {', '.join(KINDS)}")
        there = {(one.kind, one.name, one.value) for one in discover().entries}
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{metadata}", "utf-8"
        )
        with (info / "entry_points.txt").open("a", encoding="utf-8") as file:
            for kind, named in kinds.items():
                values = {name: one if isinstance(one, str) else _entry(one) for name, one in named.items()}
                new = [f"{name} = {one}\n" for name, one in values.items() if (kind, name, one) not in there]
                file.write(f"[{GROUP}{kind}]\n{''.join(new)}")
        importlib.invalidate_caches()
        return discover()


@contextlib.contextmanager
def isolated() -> Iterator[IsolatedPlugins]:
    """Inside, discovery sees sftcore's own plugins alone, and those that are installed by what is yielded.

    Inside another such block it sees that one's, too.
    """
    with tempfile.TemporaryDirectory(prefix="sftcore-plugins-") as folder:
        _folders.append(folder)
        sys.path.insert(0, folder)
        importlib.metadata.distributions = _visible
        try:
            yield IsolatedPlugins(Path(folder))
        finally:
            sys.path.remove(folder)
            _folders.remove(folder)
            if not _folders:
                importlib.metadata.distributions = _distributions
            importlib.invalidate_caches()


_distributions = importlib.metadata.distributions
_folders: list[str] = []


def _visible(**context: Any) -> Iterator[importlib.metadata.Distribution]:
    for one in _distributions(**context):
        ours = str(getattr(one, "_path", "")).startswith(tuple(_folders))
        if context or ours or not _offers_plugins(one) or normalized(one.metadata["Name"] or "") == "sftcore":
            yield one


def _offers_plugins(distribution: importlib.metadata.Distribution) -> bool:
    try:
        return f"[{GROUP}" in (distribution.read_text("entry_points.txt") or "")
    except UnicodeDecodeError:
        return False


def _entry(plugin: type) -> str:
    """An entry point that leads to the class, also where it was defined inside of a function."""
    name = plugin.__qualname__
    if "<locals>" not in name and getattr(sys.modules.get(plugin.__module__), name.split(".")[0], None) is not None:
        return f"{plugin.__module__}:{name}"
    module = types.ModuleType(f"sftcore_testing_plugin_{next(_numbers)}")
    setattr(module, plugin.__name__, plugin)
    sys.modules[module.__name__] = module
    return f"{module.__name__}:{plugin.__name__}"
