"""What `attention: auto` may take, and how rows are laid out where nobody asked: all that is known without torch.

What is taken here is what the run expects. Its first `train` or `evaluate` tries it on the model, see
`sftcore.documents.settle`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen

from sftcore.config.attention import device_of, pads, planned_dtype, shortcomings, speed_on
from sftcore.config.installed import Installed
from sftcore.config.plugins.bound import bind
from sftcore.config.plugins.declared import declared_attention
from sftcore.config.selections import default_collator
from sftcore.core.registry import ActivePlugins
from sftcore.core.types import AUTO, AttentionBackend, ModelRequest, Plan, Probe, Selection

OF_PADDED_BATCHES: Mapping[str, tuple[Any, ...]] = {
    "label_smoothing_factor": (0, 0.0),
    "pad_to_multiple_of": ("auto", 1),
    "include_num_input_tokens_seen": (False, "no"),
    "torch_compile": (False,),
}
"""Settings that concern padded batches, or all of whose logits a user may see; with the values that do not."""

UNPADDED = {
    True: "rows end to end, without padding, if the run proves that this changes nothing",
    False: "rows end to end, without padding, which the attention does not take",
}
"""Why rows are laid end to end where nobody asked for a layout, by whether they may still be padded."""


@frozen
class Arranger:
    """A run's plugins but for those that depend on its attention: makes the plan of the run with this or that one.

    `open_collator` says that no collator was chosen; `by_row` names what of the run reads its batches row by row.
    """

    plugins: ActivePlugins
    kept: tuple[Selection, ...]
    settings: Mapping[str, Any]
    model: ModelRequest
    installed: Installed
    where: str
    open_collator: bool
    by_row: str = ""

    def __call__(
        self, attention: Selection | None = None, *, flattened: bool | None = None
    ) -> tuple[Plan, ActivePlugins]:
        """The plan with this attention, or the one that was chosen; `flattened` decides on a layout that is open."""
        plugins = self.plugins if attention is None else self._having(attention)
        backend = declared_attention(plugins, self.model)
        open_layout, reasons = False, {}
        if self.open_collator:
            boundaries = backend is not None and backend.boundaries
            if flattened is None:
                why = self._padded_because(backend)
                flattened = bool(self.settings.get("padding_free"))
                if self.settings.get("packing"):
                    flattened = flattened or boundaries
                elif self.settings.get("padding_free") is None:
                    flattened = not why
                    open_layout = not why and backend is not None and backend.padding
                    reasons["collator"] = f"rows are padded: {why}" if why else UNPADDED[open_layout]
            collator = default_collator(self.settings, self.model, end_to_end=flattened, where=self.where)
            plugins = plugins.having(bind(collator, self.installed.catalog, self.installed.blocked, self.settings))
        selections = (*self.kept, *(one.selection for one in plugins.bound))
        plan = Plan(
            selections, self.settings, self.model, plugins.yielded, backend, open_layout=open_layout, reasons=reasons
        )
        return attrs.evolve(plan, flattened=plugins.declared("flattens", plan=plan)), plugins

    def fastest(self, probe: Probe, device: str | None) -> tuple[Plan, ActivePlugins]:
        """The plan with the fastest installed attention with which no plugin of the run finds a fault."""
        device = device or device_of(self.settings)
        found = []
        for selection in self.installed.attentions(self.model):
            plan, plugins = self(selection)
            if not any(one.path == AUTO for one in plan.selected("attention")) or plan.attention is None:
                return plan, plugins  # the slot is another plugin's
            shared = bool(plan.flattened or self.settings.get("packing"))
            if speed := speed_on(plan.attention, device, shared=shared):
                faults = self._faults(plan, plugins, probe, device)
                found.append((faults, -speed, selection.name, plan, plugins))
        if not found:
            return self()
        found.sort(key=lambda one: one[:3])
        fewest, *_, plan, plugins = found[0]
        usable = [one[3] for one in found if one[0] == fewest]
        names = ", ".join(one.selected("attention")[0].name for one in usable)
        candidates = tuple((one.selected("attention")[0], one.attention) for one in usable if one.attention)
        reasons = {**plan.reasons, "attention": f"the fastest of {names} on {device}"}
        return attrs.evolve(plan, candidates=candidates, reasons=reasons), plugins

    def _having(self, attention: Selection) -> ActivePlugins:
        return self.plugins.having(bind(attention, self.installed.catalog, self.installed.blocked, self.settings))

    def _faults(self, plan: Plan, plugins: ActivePlugins, probe: Probe, device: str) -> int:
        """How much is wrong with a run that has this attention."""
        assert plan.attention is not None
        found = [one for one in plugins.problems(plan, probe) if one.severity == "error"]
        dtype = planned_dtype(plan, probe, device)
        own = shortcomings(plan.attention, device, dtype, probe.model_config or {}, padded=pads(plan))
        compiled = bool(self.settings.get("torch_compile")) and not plan.attention.compilable
        return len(found) + len(list(own)) + compiled

    def _padded_because(self, backend: AttentionBackend | None) -> str:
        """Why rows are padded where nobody asked for a layout; empty where they may be laid end to end."""
        if self.model.vision:
            return "their model reads images"
        if self.by_row:
            return f"{self.by_row} reads them row by row"
        if asked := padded_batches_asked_for(self.settings, self.model):
            return asked
        if backend is None or not backend.boundaries:
            return "the attention does not keep documents apart by their boundaries"
        return ""


def padded_batches_asked_for(settings: Mapping[str, Any], model: ModelRequest) -> str:
    """What in the settings of a run is meant for padded batches; empty where nothing is."""
    for name, harmless in OF_PADDED_BATCHES.items():
        if settings.get(name) is not None and settings[name] not in harmless:
            return f"{name} is {settings[name]}"
    if settings.get("eval_packing"):
        return "the evaluation rows alone are packed"
    config = settings.get("accelerator_config")
    for name in ("dispatch_batches", "split_batches"):
        if config.get(name) if isinstance(config, Mapping) else getattr(config, name, None):
            return f"{name} cuts batches between rows"
    if model.init_kwargs.get("tp_plan"):
        return "several processes compute each of them together (tp_plan)"
    given = settings.get("dataset_kwargs")
    if isinstance(given, Mapping) and given.get("skip_prepare_dataset"):
        return "they were not prepared (skip_prepare_dataset)"
    return ""


def own_attention(implementation: str, model: ModelRequest, installed: Installed) -> Sequence[Selection]:
    """The plugin that declares the attention of a ready model, which stays as it is; none where no plugin does."""
    entry, options = installed.attention_named(implementation, model, where="the model")
    if entry is None or entry.missing or installed.blocked.blocks(entry):
        return []
    return [Selection("attention", entry.name, options, entry.distribution, AUTO, default=True)]
