"""Whether an adapter keeps the model that it is put around: its layers, its ends, its configuration, its numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore.core.registry import Bound
from sftcore.core.types import LoadedModel
from sftcore.model.unwrap import causal_model
from sftcore.model.verify.structure import Structure, bits_of, changed, configurations_of, facts_of_processor
from sftcore.util.claims import refused, spelled

if TYPE_CHECKING:
    import torch

_LEFT_ALONE = ("use_cache", "dtype", "torch_dtype", "tie_word_embeddings", "_name_or_path", "transformers_version")
"""Fields of a configuration that say nothing of what the model computes, or that an adapter has to change."""
_CONFIGURATION = "the configuration's"
_ROWS = 4


@frozen
class Base:
    """A model as its adapter is given it.

    `weights` are the parameters by name, `bits` samples of them, `dtypes` theirs, `layers` the names of the weights of
    each layer, and `ends` those of the embeddings and of the head.
    """

    weights: Mapping[str, torch.Tensor]
    bits: Mapping[str, Any]
    dtypes: Mapping[str, torch.dtype]
    layers: Mapping[str, list[str]]
    ends: tuple[str, ...]
    configuration: Structure
    tokenizer: Structure

    @classmethod
    def of(cls, loaded: LoadedModel) -> Base:
        """The model as it is now."""
        model = loaded.model
        weights = dict(model.named_parameters())
        modules = (model.get_input_embeddings(), getattr(model, "get_output_embeddings", lambda: None)())
        ends = {id(getattr(one, "weight", None)) for one in modules}
        return cls(
            weights,
            {name: bits_of(one) for name, one in weights.items()},
            {name: one.dtype for name, one in weights.items()},
            {name: [each for each in weights if each.startswith(f"{name}.")] for name in layers_of(model)},
            tuple(name for name, one in weights.items() if id(one) in ends),
            _scalars(model),
            facts_of_processor(loaded.processor),
        )

    def hold(self, one: Bound, wrapped: LoadedModel) -> tuple[str, ...]:
        """Hold that the model is still there; what the run has to say of what the adapter did to it.

        Raises:
            BrokenPluginError: a layer, the embeddings or the head is gone; a configuration or the tokenizer is another.
        """
        if fault := self.fault_of(wrapped):
            raise refused(one, fault, "Put the adapter around the model that wrap_model is given.")
        return () if one.entry.is_own else tuple(f"{spelled(one)}: {said}" for said in self._notes())

    def fault_of(self, wrapped: LoadedModel) -> str:
        """What of the model is not there any more, or is another; empty where nothing is."""
        return next(self._faults(wrapped), "")

    def _faults(self, wrapped: LoadedModel) -> Iterator[str]:
        after = [*wrapped.model.parameters()]
        kept = {id(one) for one in after}
        gone = {name for name, one in self.weights.items() if id(one) not in kept}
        # vectors are often as they are made, ones or zeros, and tell nothing of whose copy they are
        gone = {name for name in gone if self.weights[name].ndim < 2 or not _again(self.weights[name], after)}
        matrices = {name for name, one in self.weights.items() if one.ndim > 1}
        copied = bool(matrices - gone) and kept.isdisjoint(map(id, self.weights.values()))
        gone = gone & matrices if copied else gone
        of_layers = {
            name: [one for one in names if one in matrices or not copied] for name, names in self.layers.items()
        }
        lost = [name for name, names in of_layers.items() if names and gone.issuperset(names)]
        if gone and len(gone) == len(self.weights):
            yield f"the model that it returned has none of the {len(gone)} weights of the one that it was given"
        if lost:
            yield f"the model that it returned lacks {len(lost)} of {len(self.layers)} layers, such as {lost[0]}"
        places = {id(each): place for place, each in enumerate(after)}
        first = [
            next((places[id(self.weights[one])] for one in names if id(self.weights[one]) in places), None)
            for names in self.layers.values()
        ]
        if (order := [one for one in first if one is not None]) != sorted(order):
            yield "the model that it returned has its layers in another order"
        placeless = [name for name, one in wrapped.model.named_parameters() if one.device.type == "meta"]
        if placeless and all(one.device.type != "meta" for one in self.weights.values()):
            yield f"{placeless[0]} of the model that it returned has no numbers: it is on the device meta"
        for name in self.ends:
            if name in gone:
                yield f"the model that it returned lacks {name}, which it was given"
        for place in changed(self.configuration, _scalars(causal_model(wrapped.model))):
            if place not in _grown(causal_model(wrapped.model), self.configuration):
                yield f"it leaves {place} changed (allowed: nothing)"
        for place in changed(self.tokenizer, facts_of_processor(wrapped.processor)):
            yield f"it leaves {place} changed, by which the rows are prepared already (allowed: nothing)"
        if matrices and not matrices - self._changed:
            yield f"it changed all {len(matrices)} matrices of the model that it was given"

    @property
    def _changed(self) -> set[str]:
        """Weights that are there and have other numbers, in the dtype that they had."""
        same = {name for name, one in self.weights.items() if one.dtype == self.dtypes[name]}
        return {
            name
            for name in same
            if isinstance(self.bits[name], bytes) and bits_of(self.weights[name]) != self.bits[name]
        }

    def _notes(self) -> Iterator[str]:
        if there := sorted(self._changed):
            many = f"{len(there)} of {len(self.weights)} weights"
            yield f"changed {many} of the model that it was given, such as {there[0]}"
        coarser = [name for name, one in self.weights.items() if one.dtype.itemsize < self.dtypes[name].itemsize]
        if coarser:
            was, now = self.dtypes[coarser[0]], self.weights[coarser[0]].dtype
            yield f"turned {len(coarser)} weights, such as {coarser[0]}, from {was} into {now}".replace("torch.", "")


def layers_of(model: Any) -> dict[str, torch.nn.Module]:
    """The layers of a model by name: what its outermost lists of modules hold."""
    import torch

    lists: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists.append(name)
    return {f"{name}.{key}": child for name in lists for key, child in model.get_submodule(name).named_children()}


def _again(weight: torch.Tensor, among: Iterable[torch.Tensor]) -> bool:
    """Whether one of these tensors begins with the same rows: a copy, which may have more of them."""
    rows = weight.detach()[:_ROWS]
    return any(
        one.shape[1:] == weight.shape[1:]
        and len(one) >= len(rows)
        and bool((one.detach()[:_ROWS].to(rows) == rows).all())
        for one in among
        if one.ndim == weight.ndim > 0 and one.device.type != "meta"
    )


def _grown(model: Any, before: Structure) -> set[str]:
    """The counts in the configuration that are larger than before, as the model's layers and embeddings are."""
    there = {"num_hidden_layers": len(layers_of(model)), "vocab_size": len(model.get_input_embeddings().weight)}
    now, grown = _scalars(model), set()
    for name, count in there.items():
        place = f"{_CONFIGURATION} {name}"
        if place in before and place in now and json.loads(before[place]) < json.loads(now[place]) <= count:
            grown.add(place)
    return grown


def _scalars(model: Any) -> Structure:
    """The fields of the configuration that hold a number or a text."""
    fields = configurations_of(model)
    plain = {name: value for name, value in fields.items() if not isinstance(json.loads(value), (dict, list))}
    return {name: value for name, value in plain.items() if name.rpartition(" ")[2] not in _LEFT_ALONE}
