"""Noise that plugins add in training: on while the run trains, off in evaluations and in what is saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
from attrs import define

from sftcore.core.registry import ActivePlugins, Bound
from sftcore.core.types import LoadedModel, Plan, Removable
from sftcore.train.parts.part import Part


@define
class TrainingNoise(Part):
    """The noise plugins of a run."""

    _plugins: ActivePlugins
    _plan: Plan
    _loaded: LoadedModel
    _handles: list[tuple[Bound, Removable]] = attrs.field(factory=list)

    def on(self) -> None:
        """Inject what the run's noise plugins have, unless it is there already."""
        if not self._handles:
            self._handles.extend(self._plugins.all("inject_noise", loaded=self._loaded, plan=self._plan))

    def inject(self, one: Bound) -> Removable | None:
        """The noise of one plugin alone, which the caller removes."""
        answers = self._plugins.ask(one, "inject_noise", loaded=self._loaded, plan=self._plan)
        return answers[0] if answers else None

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
