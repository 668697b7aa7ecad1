"""Noise that plugins add in training: on while the run trains, off in evaluations and in what is saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
from attrs import define

from sftcore.core.registry import ActivePlugins, Bound
from sftcore.core.types import LoadedModel, Plan, Removable
from sftcore.model.verify.structure import Structure, changed, configurations_of, facts_of_processor
from sftcore.train.parts.part import Part
from sftcore.util.claims import refused


@define
class TrainingNoise(Part):
    """The noise plugins of a run."""

    _plugins: ActivePlugins
    _plan: Plan
    _loaded: LoadedModel
    _handles: list[tuple[Bound, Removable]] = attrs.field(factory=list)

    def on(self) -> None:
        """Inject what the run's noise plugins have, unless it is there already."""
        if self._handles:
            return
        noisy = self._plugins.answers("inject_noise")
        if not noisy:  # there may be a wrapper alone
            self._handles.extend(self._plugins.all("inject_noise", loaded=self._loaded, plan=self._plan))
        for one in noisy:
            with self._flags_kept(one):
                handle = self.inject(one)
            if handle is not None:
                self._handles.append((one, handle))

    def inject(self, one: Bound) -> Removable | None:
        """The noise of one plugin alone, which the caller removes."""
        answers = self._plugins.ask(one, "inject_noise", loaded=self._loaded, plan=self._plan)
        return answers[0] if answers else None

    @contextmanager
    def _flags_kept(self, one: Bound) -> Iterator[None]:
        """Around the injection: what trains, the configuration and the tokenizer are not for noise to decide.

        Raises:
            BrokenPluginError: one of them is another afterwards.
        """
        before = {name: each.requires_grad for name, each in self._loaded.model.named_parameters()}
        described = self._described()
        yield
        for place in changed(described, self._described()):
            raise refused(one, f"it leaves {place} changed (allowed: nothing)")
        for name, each in self._loaded.model.named_parameters():
            if each.requires_grad != before.get(name, each.requires_grad):
                does = "trains now" if each.requires_grad else "does not train any more"
                raise refused(one, f"{name} {does}, once it is on; noise changes values alone")

    def _described(self) -> Structure:
        return {**configurations_of(self._loaded.model), **facts_of_processor(self._loaded.processor)}

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
