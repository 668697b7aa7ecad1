"""Plugins that must not be used, whoever asks for them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from attrs import frozen

from sftcore.core.discovery import PluginEntry, normalized
from sftcore.core.errors import RecipeError, nearest
from sftcore.core.types import KINDS


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
