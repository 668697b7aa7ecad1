"""Kernels that plugins put into the model: on while the trainer runs it, off again afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
from attrs import define

from sftcore.core.registry import ActivePlugins, Bound
from sftcore.core.types import LoadedModel, PatchReport, Plan
from sftcore.model.verify.structure import changed, structure_of
from sftcore.util.claims import refused, spelled
from sftcore.util.foreign import naming_plugins
from sftcore.util.process_state import left_as_found


@define
class Kernels:
    """What the kernel plugins of a run replaced in its model, and how to take it off."""

    _plugins: ActivePlugins
    _plan: Plan
    _loaded: LoadedModel | None = None
    _undo: list[Callable[[], None]] = attrs.field(factory=list)
    _depth: int = 0

    def on(self, loaded: LoadedModel) -> tuple[str, ...]:
        """Patch the model, before its adapter is put around it; a note for each plugin.

        Raises:
            BrokenPluginError: when they are put on for the first time, one cannot be taken off again.
        """
        if self._loaded is None:
            for one in self._plugins.answers("patch_kernels"):
                fault, fix = self.left_by(one, loaded)
                if fault:
                    raise refused(one, fault, fix)
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

    def patch(self, one: Bound, loaded: LoadedModel | None = None) -> PatchReport:
        """What one plugin replaces in the model; empty where it answers nothing."""
        answers = self._plugins.ask(one, "patch_kernels", loaded=loaded or self._loaded, plan=self._plan)
        return answers[0] if answers else PatchReport()

    def left_by(self, one: Bound, loaded: LoadedModel) -> tuple[str, str]:
        """What a plugin leaves behind that is put on and taken off, and how to mend it; empty where it is nothing."""
        before = structure_of(loaded.model, loaded.processor)
        report = self.patch(one, loaded)
        if report.undo is None and report.replaced:
            fault = f"it replaced {', '.join(report.replaced)} and its PatchReport has no undo"
            return fault, "Give it an undo that puts back what was there."
        if report.undo is not None:
            with left_as_found(f"{spelled(one)} in its undo"):
                report.undo()
        if left := changed(before, structure_of(loaded.model, loaded.processor)):
            what = "its undo leaves" if report.undo is not None else "it reports no replacement, and it left"
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            return f"{what} {left[0]}{more} changed (allowed: nothing)", ""
        return "", ""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Off inside, and as before afterwards."""
        were_on, depth = bool(self._undo), self._depth
        self.off()
        self._depth = 1  # so that nothing inside puts them on
        try:
            yield
        finally:
            self._depth = depth
            if were_on and self._loaded is not None:
                self.on(self._loaded)

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
