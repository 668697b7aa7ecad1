"""Noise that plugins add in training: on while the run trains, off in evaluations and in what is saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
from attrs import define

from sftcore.core.discovery import PluginEntry
from sftcore.core.registry import ActivePlugins, Bound
from sftcore.core.types import LoadedModel, Plan, Removable
from sftcore.model.verify.structure import Structure, changed, structure_of
from sftcore.train.parts.part import Part
from sftcore.util.claims import refused


@define
class TrainingNoise(Part):
    """The noise plugins of a run."""

    _plugins: ActivePlugins
    _plan: Plan
    _loaded: LoadedModel
    _handles: list[tuple[Bound, Removable]] = attrs.field(factory=list)
    _held: list[PluginEntry] = attrs.field(factory=list)

    def on(self) -> None:
        """Inject what the run's noise plugins have, unless it is there already."""
        if self._handles:
            return
        noisy = self._plugins.answers("inject_noise")
        if not noisy:  # there may be a wrapper alone
            self._handles.extend(self._plugins.all("inject_noise", loaded=self._loaded, plan=self._plan))
        for one in noisy:
            before = None if one.entry in self._held else self._structure()
            with self._flags_kept(one):
                handle = self.inject(one)
            if before is not None:
                self._hold_removed(one, handle, before)
                handle = self.inject(one)
            if handle is not None:
                self._handles.append((one, handle))

    def inject(self, one: Bound) -> Removable | None:
        """The noise of one plugin alone, which the caller removes."""
        answers = self._plugins.ask(one, "inject_noise", loaded=self._loaded, plan=self._plan)
        return answers[0] if answers else None

    @contextmanager
    def _flags_kept(self, one: Bound) -> Iterator[None]:
        """Around the injection: what trains and what does not is no noise's to decide.

        Raises:
            BrokenPluginError: another set of parameters trains afterwards.
        """
        before = {name: each.requires_grad for name, each in self._loaded.model.named_parameters()}
        yield
        for name, each in self._loaded.model.named_parameters():
            if each.requires_grad != before.get(name, each.requires_grad):
                does = "trains now" if each.requires_grad else "does not train any more"
                raise refused(one, f"{name} {does}, once it is on; noise changes values alone")

    def _hold_removed(self, one: Bound, handle: Removable | None, before: Structure) -> None:
        """Take noise off that was put on for the first time, and look whether anything is left.

        Raises:
            BrokenPluginError: something is.
        """
        if handle is not None:
            handle.remove()
        self._held.append(one.entry)
        if left := changed(before, self._structure()):
            what = "it gives nothing to remove, and it left" if handle is None else "its remove leaves"
            raise refused(one, f"{what} {left[0]} changed (allowed: nothing)")

    def _structure(self) -> Structure:
        return structure_of(self._loaded.model, self._loaded.processor)

    def off(self) -> bool:
        """Remove it; True where there was some."""
        was_on = bool(self._handles)
        for _, handle in self._handles:
            handle.remove()
        self._handles.clear()
        return was_on

    @contextmanager
    def training(self) -> Iterator[None]:
        """On inside, off afterwards, whatever happens."""
        self.on()
        try:
            yield
        finally:
            self.off()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Off inside, and as before afterwards."""
        was_on = self.off()
        try:
            yield
        finally:
            if was_on:
                self.on()

    around_save = paused
