"""The trials of `sftcore.trials`, which a run makes before its first step, made of one plugin on a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from attrs import frozen

from sftcore.config.setup import Setup, set_up
from sftcore.core.types import AttentionBackend, LoadedModel, LoadOptions, ModelRequest, Selection
from sftcore.model.kernels import Kernels
from sftcore.model.verify.base_kept import Base
from sftcore.model.verify.registration import register
from sftcore.testing.image_runs import processor_for
from sftcore.testing.tiny import make_llama, make_tokenizer
from sftcore.trials.outcome import Outcome

ROWS = (
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]},
    {"input_ids": [11, 12, 13], "labels": [-100, 12, 13]},
    {"input_ids": [21, 22, 23, 24, 25, 26, 27], "labels": [-100, -100, -100, 24, 25, 26, 27]},
)
PACKED = (
    {"input_ids": [5, 6, 7, 11, 12], "labels": [-100, 6, 7, -100, 12], "seq_lengths": [3, 2]},
    {"input_ids": [21, 22, 23], "labels": [-100, 22, 23], "seq_lengths": [3]},
)
HALVES = ("bfloat16", "float16")


@frozen
class Trial:
    """A plugin in a run of its own, to be tried on the device of this process."""

    kind: str
    setup: Setup
    packed: bool
    device: str
    saved: str
    """The name of a saved model, for loaders, and for adapters whose model has to come from one."""
    loads: bool = False
    """Whether the model comes from the selected loader."""
    reads_images: bool = False

    @classmethod
    def of(
        cls,
        kind: str,
        name: str,
        options: Mapping[str, Any],
        *,
        packed: bool,
        device: str,
        saved: str = "",
        loader: str = "",
    ) -> Trial:
        selected = [Selection(kind, name, options, path="the test")]
        if loader:
            selected.append(Selection("loader", loader, {}, path="the test"))
        fields = {"seed": 0, "use_cpu": device == "cpu"}
        without = [] if kind == "loader" or loader else ["loader"]
        setup = set_up(selected, fields, ModelRequest(), where="the test", without=without)
        return cls(kind, setup, packed, device, saved, loads=bool(loader))

    def one(self, hook: str, **arguments: Any) -> Any:
        """The answer of the plugin to a hook that one plugin answers."""
        return self.setup.plugins.one(hook, **arguments)

    def first(self, hook: str, **arguments: Any) -> Any:
        """Its answer to a hook that asks all; None where it has none."""
        answers = self.setup.plugins.all(hook, **arguments)
        return next((answer for one, answer in answers if one.selection.kind == self.kind), None)

    def loaded(self, dtype: str = "float32") -> LoadedModel:
        """A tiny model on the device, with its tokenizer."""
        import torch

        if self.loads:
            request = ModelRequest(self.saved, dtype=dtype)
            found: LoadedModel = self.one("load_model", request=request, options=LoadOptions({}))
            return found
        tokenizer = make_tokenizer()
        model = make_llama(tokenizer).to(getattr(torch, dtype)).to(self.device)
        return LoadedModel(model, tokenizer, ModelRequest(dtype=dtype))

    def passes(self, loaded: LoadedModel, backend: AttentionBackend | None = None) -> Any:
        """Trials on the model, of documents that share rows where the layout says so."""
        from sftcore.documents.proof import keep_documents_apart
        from sftcore.trials.model import ModelTrial

        if not self.packed:
            return ModelTrial(loaded.model)
        flattened = backend is not None and backend.boundaries
        way = keep_documents_apart(loaded.model, backend, flattened=flattened).way
        return ModelTrial(loaded.model, way, flattened=flattened)


def _said(outcome: Outcome) -> dict[str, Any]:
    return {"fault": outcome.fault, "fix": outcome.fix, "notes": list(outcome.notes)}


def _collator(trial: Trial) -> dict[str, Any]:
    from sftcore.trials.collator import try_collator

    collate = trial.one("make_collator", processor=processor_for(trial.reads_images), plan=trial.setup.plan)
    rows = PACKED if trial.packed else ROWS
    weighted = [{**row, "weights": [0.5] * (len(row["input_ids"]) - 1) + [1.0]} for row in rows]
    found = try_collator(collate, rows)
    return _said(found if found.fault else try_collator(collate, weighted))


def _loss(trial: Trial) -> dict[str, Any]:
    import torch

    from sftcore.trials.loss import try_loss_in_model

    loaded = trial.loaded()
    loss = trial.one("make_loss", loaded=loaded, plan=trial.setup.plan)
    ids = torch.arange(5, 21, device=trial.device)[None]
    return _said(try_loss_in_model(loss, loaded.model, loaded.model, ids))


def _attention(trial: Trial) -> dict[str, Any]:
    backend = trial.one("attention_backend", request=ModelRequest())
    if backend.devices and trial.device not in backend.devices:
        return {"skipped": f"it runs on {', '.join(backend.devices)} alone"}
    if backend.backward is False or (isinstance(backend.backward, tuple) and trial.device not in backend.backward):
        return {"skipped": f"it has no backward pass on {trial.device}"}
    if not trial.packed and not backend.padding:
        return {"skipped": "it takes no padded rows"}
    dtypes = backend.dtypes.get(trial.device, ()) if isinstance(backend.dtypes, Mapping) else backend.dtypes
    half = next((name for name in HALVES if name in dtypes), "float32")
    loaded = trial.loaded("float32" if not dtypes or "float32" in dtypes else half)
    register(backend, trial.setup.plugins.answers("attention_backend")[0].origin("attention_backend"))
    loaded.model.set_attn_implementation(backend.implementation)
    passes = trial.passes(loaded, backend)
    found = passes.attention(exact=backend.exact)
    if not found.fault and not trial.packed:  # some collators pad on the left
        again = attrs.evolve(passes, left=True).attention(exact=backend.exact)
        found = attrs.evolve(again, fault=again.fault and f"with padding on the left {again.fault}")
    return _said(found)


def _kernel(trial: Trial) -> dict[str, Any]:
    loaded, said = trial.loaded(), []

    def patch() -> Any:
        said.append(trial.first("patch_kernels", loaded=loaded, plan=trial.setup.plan))
        return said[-1]

    found = trial.passes(loaded).kernel(patch)
    report = said[0]
    for one in trial.setup.plugins.answers("patch_kernels") if not found.fault else ():
        fault, fix = Kernels(trial.setup.plugins, trial.setup.plan).left_by(one, trial.loaded())
        if fault:
            return _said(Outcome(fault, fix))
    if not found.fault and (report is None or not report.replaced):
        why = "; ".join(f"{name}: {reason}" for name, reason in report.skipped.items()) if report else "no report"
        return {"skipped": f"it replaced nothing in a tiny Llama ({why})"}
    return _said(found)


def _noise(trial: Trial) -> dict[str, Any]:
    loaded = trial.loaded()
    return _said(trial.passes(loaded).noise(lambda: trial.first("inject_noise", loaded=loaded, plan=trial.setup.plan)))


def _adapter(trial: Trial) -> dict[str, Any]:
    given = trial.loaded()
    base = Base.of(given)
    found = trial.one("wrap_model", loaded=given, plan=trial.setup.plan)
    if fault := base.fault_of(found):
        return _said(Outcome(fault))
    return _said(trial.passes(found).adapter(saves=bool(trial.setup.plugins.answers("save_model"))))


def _loader(trial: Trial) -> dict[str, Any]:
    """The weights of a saved model, in each dtype that is asked for, with an argument that is asked for."""
    import torch

    wanted = make_llama(make_tokenizer()).state_dict()
    for dtype in ("float32", "bfloat16"):
        request = ModelRequest(trial.saved, dtype=dtype, init_kwargs={"attn_implementation": "eager"})
        loaded = trial.one("load_model", request=request, options=LoadOptions(request.init_kwargs))
        fault = _loaded_fault(loaded, wanted, getattr(torch, dtype), trial.saved)
        if fault:
            return {"fault": f"asked for {dtype}, {fault}", "fix": "", "notes": []}
    return {"fault": "", "fix": "", "notes": []}


def _loaded_fault(loaded: LoadedModel, wanted: Mapping[str, Any], dtype: Any, asked: str) -> str:
    model = loaded.model
    other = {str(one.dtype) for one in model.parameters() if one.is_floating_point() and one.dtype != dtype}
    if other:
        return f"it gives weights of {', '.join(sorted(other))}. Pass request.dtype on"
    found = model.state_dict()
    missing = [name for name in wanted if name not in found]
    if missing:
        return f"{missing[0]} is missing from its model"
    changed = [name for name, one in wanted.items() if not (found[name].cpu() == one.to(dtype)).all()]
    if changed:
        return f"the weights of {changed[0]} are not those that were saved"
    if (used := model.config._attn_implementation) != "eager":
        return f"attn_implementation is {used}, and eager was asked for. Pass options.kwargs on"
    if loaded.request.name != asked:
        return "its LoadedModel does not have the request that it was given"
    return ""


CLAIMS: dict[str, Callable[[Trial], dict[str, Any]]] = {
    "collator": _collator, "loss": _loss, "attention": _attention, "kernel": _kernel, "noise": _noise,
    "adapter": _adapter, "loader": _loader,
}  # fmt: skip
"""For each kind a trial of what a plugin claims."""
