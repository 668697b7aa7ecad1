"""Trials that were passed, kept in the cache folder by everything that they depend on, so that a next run skips them.

Only what passed is kept, with what the run has to say of it. A plugin whose source or options change is tried again,
and so is one whose class was made inside a function, because its source does not tell what it does.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore.data.store.cache import source_digest
from sftcore.data.store.keys import plugin_digest
from sftcore.trials.outcome import Outcome
from sftcore.util.disk import cache_folder, replace_text

if TYPE_CHECKING:
    from sftcore.core.registry import Bound

_LIBRARIES = ("torch", "transformers", "peft", "accelerate")


@frozen
class KeptTrials:
    """The trials that this machine has seen pass.

    Args:
        facts: of the run: the model's class and configuration, dtypes, device, and how it is called.
    """

    facts: Mapping[str, Any]

    def passed(self, one: Bound) -> Outcome | None:
        """The outcome for this plugin, or None if it has to be tried."""
        path = self._path(one)
        if path is None:
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return Outcome(notes=tuple(map(str, found["notes"])))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, one: Bound, outcome: Outcome) -> None:
        """Remember a trial that was passed; where the cache cannot be written to, the next run tries again."""
        path = self._path(one)
        if path is None or outcome.fault:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, json.dumps({"plugin": one.entry.label, "notes": list(outcome.notes)}))
        except OSError:
            return

    def _path(self, one: Bound) -> Path | None:
        if "<locals>" in type(one.plugin).__qualname__:
            return None
        versions = {name: _version(name) for name in _LIBRARIES}
        key = [plugin_digest(one), dict(self.facts), versions, source_digest(__file__)]
        text = json.dumps(key, sort_keys=True, default=str)
        name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return cache_folder() / "trials" / f"{name}.json"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
