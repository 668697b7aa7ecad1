"""Kernels that plugins put into the model: on while the trainer runs it, off again afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
from attrs import define

from sftcore.core.registry import ActivePlugins
from sftcore.core.types import LoadedModel, Plan
from sftcore.util.foreign import naming_plugins


@define
class Kernels:
    """What the kernel plugins of a run replaced in its model, and how to take it off."""

    _plugins: ActivePlugins
    _plan: Plan
    _loaded: LoadedModel | None = None
    _undo: list[Callable[[], None]] = attrs.field(factory=list)
    _depth: int = 0

    def on(self, loaded: LoadedModel) -> tuple[str, ...]:
        """Patch the model, before its adapter is put around it; a note for each plugin."""
        self._loaded = loaded
        notes = []
        for one, report in self._plugins.all("patch_kernels", loaded=loaded, plan=self._plan):
            skipped = "".join(f", {name} skipped: {why}" for name, why in report.skipped.items())
            notes.append(f"{one.selection.label} replaced {', '.join(report.replaced) or 'nothing'}{skipped}")
            if report.undo is not None:
                self._undo.append(report.undo)
        return tuple(notes)

    def off(self) -> None:
        """Take every patch off, the last one first."""
        while self._undo:
            self._undo.pop()()

    @contextmanager
    def running(self) -> Iterator[None]:
        """On inside, off afterwards; inside another such block nothing changes. Errors in it name the plugin's code."""
        if self._depth == 0 and not self._undo and self._loaded is not None:
            self.on(self._loaded)
        self._depth += 1
        try:
            with naming_plugins(self._plugins.bound):
                yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.off()
