"""Copies of functions that see other globals, through whatever decorators are around them."""

from __future__ import annotations

import functools
import sys

import pytest
import torch
from sftcore_plugins.kernels._patching import InstancePatch, confined_to


def doubled(x):
    return 2 * x


def tenfold(x):
    return 10 * x


def renaming(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        if "old" in kwargs:
            kwargs["x"] = kwargs.pop("old")
        return function(*args, **kwargs)

    return wrapper


class Layer(torch.nn.Module):
    def forward(self, x):
        return doubled(x)


class Decorated(torch.nn.Module):
    @renaming
    @torch.no_grad()
    def forward(self, x):
        return doubled(x)


class Nested(torch.nn.Module):
    def forward(self, x):
        return (lambda: doubled(x))()


class Inherited(Decorated):
    pass


@pytest.mark.parametrize("layer", [Layer, Decorated, Nested, Inherited])
def test_a_replaced_function_is_seen_through_decorators_by_the_one_model_alone(monkeypatch, layer):
    here = sys.modules[__name__]
    monkeypatch.setattr("sftcore_plugins.kernels._patching._SHARED", (__name__,))
    one, other, patch = layer(), layer(), InstancePatch()
    with confined_to(one, patch):
        here.doubled = tenfold
    assert here.doubled(1) == 2
    assert (one(torch.tensor(1)), other(torch.tensor(1))) == (10, 2)
    if layer in (Decorated, Inherited):
        assert one(old=torch.tensor(3)) == 30
        assert not one(torch.ones(1, requires_grad=True)).requires_grad
    assert patch.modules == 1
    patch.undo()
    assert one(torch.tensor(1)) == 2


def test_a_layer_that_was_replaced_is_taken_back():
    model, patch = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(2, 2)), InstancePatch()
    own = model[0]
    with confined_to(model, patch):
        model[0] = torch.nn.GELU()
    assert isinstance(model[0], torch.nn.GELU)
    patch.undo()
    assert model[0] is own


def test_a_table_that_models_share_holds_what_it_held():
    from transformers.models.llama import modeling_llama

    before = {name: dict.__getitem__(modeling_llama.ACT2FN, name) for name in modeling_llama.ACT2FN}
    with confined_to(torch.nn.ReLU(), InstancePatch()):
        modeling_llama.ACT2FN["silu"] = torch.nn.Identity
        modeling_llama.ACT2FN["own"] = torch.nn.Identity
    assert {name: dict.__getitem__(modeling_llama.ACT2FN, name) for name in modeling_llama.ACT2FN} == before
