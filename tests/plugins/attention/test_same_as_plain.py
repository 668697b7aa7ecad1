"""Each attention gives the loss and the gradients of plain transformers on documents in rows of their own."""

from __future__ import annotations

import pytest
import torch
from sftcore_plugins.attention.eager import Eager
from sftcore_plugins.attention.flash1 import Flash1
from sftcore_plugins.attention.flash2 import Flash2
from sftcore_plugins.attention.flex import Flex
from sftcore_plugins.attention.sdpa import SDPA
from sftcore_plugins.attention.varlen import Varlen

from sftcore.documents.proof import keep_documents_apart
from tests.documents.architectures import backend_of, build
from tests.plugins.attention import reference

PLUGINS = {"sdpa": SDPA, "eager": Eager, "varlen": Varlen, "flash-1": Flash1}
MODELS = ["Llama", "Qwen3", "Gemma3"]
IDS = reference.ids_of(reference.ROWS)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("attention", PLUGINS)
def test_packed_rows_give_loss_and_gradients_of_documents_alone(attention, model):
    backend = backend_of(PLUGINS[attention])
    own = build(model, backend.implementation)
    proof = keep_documents_apart(own, backend, flattened=False)
    assert proof.gaps.neighbours == 0
    assert proof.way.name == ("boundaries" if backend.boundaries else "positions")
    for plain in ("eager", "sdpa"):
        wanted = reference.alone(build(model, plain), IDS)
        reference.assert_same(reference.packed(own, IDS, proof.way), wanted, 1e-4)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("attention", [name for name in PLUGINS if name != "flash-1"])
def test_padded_rows_give_loss_and_gradients_of_documents_alone(attention, model):
    backend = backend_of(PLUGINS[attention])
    got = reference.padded(build(model, backend.implementation), IDS)
    reference.assert_same(got, reference.alone(build(model, "eager"), IDS), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_flex_gives_the_logits_of_documents_alone_on_a_cpu(model):
    backend = backend_of(Flex)
    own, plain = build(model, backend.implementation).eval(), build(model, "eager").eval()
    proof = keep_documents_apart(own, backend, flattened=False)
    assert (proof.way.name, proof.gaps.neighbours) == ("positions", 0)
    with torch.no_grad():
        assert torch.allclose(_packed_logits(own, proof.way), _packed_logits(plain, proof.way), atol=1e-4)


def _packed_logits(model, way):
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in reference.ROWS])
    input_ids = torch.stack([torch.cat(row) for row in IDS])
    return model(**way({"input_ids": input_ids, "position_ids": positions}), use_cache=False).logits


@pytest.mark.parametrize("model", MODELS)
def test_flash_2_gives_them_in_half_precision_with_a_double_of_flash_attn(model, flash_attn):
    backend = backend_of(Flash2)
    own, plain = build(model, backend.implementation, dtype="bfloat16"), build(model, "sdpa", dtype="bfloat16")
    proof = keep_documents_apart(own, backend, flattened=False)
    assert (proof.way.name, proof.gaps.neighbours) == ("boundaries", 0)
    assert flash_attn.calls["flash_attn_varlen_func"] > 0
    wanted = reference.alone(plain, IDS)
    reference.assert_same(reference.packed(own, IDS, proof.way), wanted, 5e-2)
    reference.assert_same(reference.padded(own, IDS), wanted, 5e-2)


def test_flash_attn_wants_half_precision(flash_attn):
    own = build("Llama", "flash_attention_2")
    with pytest.raises(RuntimeError, match="only support fp16 and bf16"):
        own(input_ids=IDS[0][2][None], use_cache=False)
