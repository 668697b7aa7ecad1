"""Layouts, attentions, dtypes, adapters and all else train on the stand-in as on a CPU: every pair of them."""

from __future__ import annotations

import itertools

import pytest

from sftcore.testing.standin.process import on_cpu, on_standin
from tests.pairs.grid import pairs
from tests.standin.matrix import AXES, allowed, call, chosen, tolerance

pytestmark = pytest.mark.slow

pytest.importorskip("torch", minversion="2.10")

TRAIN = "tests.standin.training:train"
COMPARED = ("loss", "eval_loss", "mean_token_accuracy", "eval_mean_token_accuracy", "entropy", "eval_right")
IMPLEMENTATIONS = {
    "sdpa": "sdpa", "eager": "eager", "varlen": "sftcore_varlen", "flash-1": "sftcore_fa1",
    "flash-2": "flash_attention_2",
}  # fmt: skip


def problems(combination, found, wanted):
    """What is not as on the CPU, in words."""
    for name, one in (("stand-in", found), ("CPU", wanted)):
        if "error" in one:
            return [f"{name}: {one['error']}"]
    batches, attention, *_, memory, _ = combination
    told = []
    if found["device"] != "standin:0" or found["attention"] != IMPLEMENTATIONS[attention]:
        told.append(f"it ran on {found['device']} with {found['attention']}")
    if found["gathers"] is not True or any("all logits" in note for note in found["notes"]):
        told.append(f"it builds all logits: {found['notes']}")
    if (found["way"] is None) is not (batches == "padded"):
        told.append(f"documents are kept apart by {found['way']}")
    if any(found["offloaded"]) is not (memory == "offloading"):
        told.append(f"it offloaded {found['offloaded']} bytes")
    if found.get("generated") != wanted.get("generated"):
        told.append(f"it wrote {found['generated']}, not {wanted['generated']}")
    for got, same in itertools.zip_longest(found["logged"], wanted["logged"], fillvalue={}):
        for key in COMPARED:
            if got.get(key) != pytest.approx(same.get(key), abs=tolerance(combination)):
                told.append(f"{key} is {got.get(key)}, not {same.get(key)}")
    return told


def test_every_pair_trains_with_the_losses_of_the_cpu():
    found = on_standin(TRAIN, [call(one) for one in chosen()])
    wanted = on_cpu(TRAIN, [call(one, on_cpu=True) for one in chosen()])
    told = {" ".join(one): problems(one, *results) for one, *results in zip(chosen(), found, wanted, strict=True)}
    assert {name: what for name, what in told.items() if what} == {}


def test_the_matrix_holds_every_pair_that_is_allowed():
    tried = set(itertools.chain.from_iterable(map(pairs, chosen())))
    every = {pair for one in itertools.product(*AXES.values()) if allowed(one) for pair in pairs(one)}
    assert tried == every
    assert all(allowed(one) for one in chosen())
