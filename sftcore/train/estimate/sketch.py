"""The trainer of a run whose model has shapes and no weights: all that is made of it is the run's own code."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sftcore.config.probe import probe_run, quantisation_asked_for
from sftcore.core.errors import ModelError
from sftcore.core.types import Plan
from sftcore.data.host_facts import HostFacts, WithFacts, place
from sftcore.model.build import attention_of, merged_options
from sftcore.model.precision import quantisation_of
from sftcore.model.skeleton import skeleton_of
from sftcore.train.estimate.quantised import quantise
from sftcore.train.settled import expect


def sketch_of(kind: type[Any]) -> Any:
    """A class of trainers like SFTTrainer, which is `kind`, that do not load their model; see `Sketch`."""
    return type("SketchTrainer", (Sketch, kind), {})


class Sketch:
    """Makes an SFTTrainer one whose model's tensors know shape, dtype and device alone; no weight is read.

    Its attributes `shapes` (the mode in which they are made) and `model` are there once it is made; `batch` gives it
    rows.
    """

    args: Any
    setup: Any
    loaded: Any
    layouts: Any
    bound_loss: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.shapes = FakeTensorMode(allow_non_fake_inputs=True)
        super().__init__(*args, **kwargs)
        self._proven = True
        self.bound_loss.reason = ""
        expect(self)

    def _load_model(self, model: Any, processor: Any, args: Any, *others: Any) -> None:
        plan, plugins = self.setup.plan, self.setup.plugins
        if isinstance(model, str):
            made = _of_name(model, plan, merged_options(plan, plugins, attention_of(plan, plugins)).kwargs)
        else:
            made = _of_object(model)
        with torch.device("meta"):
            super()._load_model(made, processor, args, *others)  # type: ignore[misc]
        with self.shapes:
            _place(self.loaded.model, args.device)

    def _move_model_to_device(self, model: Any, device: Any) -> Any:
        return model

    def collated(self, rows: list[Any]) -> Any:
        """Rows as the run's collator lays them out, with values; outside the mode of shapes."""
        columns = set(self.columns_for_collator())  # type: ignore[attr-defined]
        kept = [{name: value for name, value in row.items() if name in columns} for row in rows]
        return WithFacts(self.layouts)(kept)

    def batch(self, collated: Any) -> dict[str, Any]:
        """The shapes of a batch, with what the host knows of it."""
        batch = {name: self._shape_of(one) for name, one in collated.items()}
        facts: HostFacts | None = getattr(collated, "facts", None)
        if facts is not None:
            tensors = {"positions": facts.positions, "boundaries": facts.boundaries}
            place(attrs.evolve(facts, **{name: self._shape_of(one) for name, one in tensors.items()}), batch)
        return batch

    def _shape_of(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        with self.shapes:
            return torch.empty(value.shape, dtype=value.dtype, device=self.args.device)


def _of_name(name: str, plan: Plan, kwargs: Mapping[str, Any]) -> Any:
    """The model of a name on the meta device, in the dtype and the quantisation that it would be loaded with.

    Raises:
        ModelError: only loading tells what it is made of, or it is quantised in another way than by bitsandbytes.
    """
    skeleton = skeleton_of(name, plan)
    if skeleton is None:
        raise ModelError(
            "what this model is made of is known once it is loaded: it is a saved adapter, a GGUF file, needs code of "
            "its own or a loader of its own, or its configuration cannot be read.",
            where=f"model {name}",
            fix="Name the folder or the hub id of its base.",
        )
    asked = dict(kwargs)
    request = attrs.evolve(plan.model, init_kwargs=asked)
    wanted = quantisation_asked_for(request, probe_run(request))
    dtype = _dtype(asked.get("dtype") or plan.model.dtype, skeleton.config)
    skeleton.to(dtype)
    if wanted:
        if not (wanted.get("load_in_4bit") or wanted.get("load_in_8bit")):
            raise ModelError(
                f"the model is quantised by {wanted.get('quant_method', 'another library')}, and only the sizes of "
                "bitsandbytes' layers are known.",
                where=f"model {name}",
                fix="Name the unquantised model.",
            )
        skeleton.requires_grad_(False)
        quantise(skeleton, wanted)
        if dtype == torch.float16:
            for one in skeleton.parameters():
                one.data = one.data.float()
        skeleton.enable_input_require_grads()
    return skeleton


def _of_object(model: Any) -> Any:
    """The shapes of a ready model, which stays as it is.

    Raises:
        ModelError: it is quantised.
    """
    if quantised := quantisation_of(model):
        raise ModelError(
            f"the model is {quantised}, and of a ready model that is quantised the shapes alone cannot be run.",
            fix="Pass its name, and quantization_config.",
        )
    memo: dict[int, Any] = {}
    for one in (*model.parameters(), *model.buffers()):
        twin = torch.empty_like(one, device="meta")
        memo[id(one)] = torch.nn.Parameter(twin, one.requires_grad) if isinstance(one, torch.nn.Parameter) else twin
    return copy.deepcopy(model, memo)


def _place(model: Any, device: torch.device) -> None:
    """Put a model of the meta device on this one, tensors that are one still one; in the mode of shapes."""
    known: dict[int, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, one in tensors.items():
                if one is None:
                    continue
                if id(one) not in known:
                    twin = torch.empty(one.shape, dtype=one.dtype, device=device)
                    is_weight = isinstance(one, torch.nn.Parameter)
                    known[id(one)] = one, torch.nn.Parameter(twin, one.requires_grad) if is_weight else twin
                tensors[name] = known[id(one)][1]
        packed = vars(module).get("packed")
        if packed is not None:
            module.packed = torch.empty(packed.shape, dtype=packed.dtype, device=device)


def _dtype(asked: Any, config: Any) -> torch.dtype:
    if asked in (None, "auto"):
        asked = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    return asked if isinstance(asked, torch.dtype) else getattr(torch, str(asked).removeprefix("torch."))
