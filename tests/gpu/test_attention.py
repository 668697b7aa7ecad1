"""Every attention on a GPU: loss and gradients of plain transformers, the kernel that was asked for, refusals.

python -m pytest tests/gpu
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from sftcore_plugins.attention.flash1 import Flash1
from sftcore_plugins.attention.flash2 import Flash2
from sftcore_plugins.attention.flex import Flex
from sftcore_plugins.attention.sdpa import SDPA
from sftcore_plugins.attention.varlen import Varlen, kernel
from torch.profiler import ProfilerActivity, profile

from sftcore import ModelError
from sftcore.documents.proof import keep_documents_apart
from tests.documents.architectures import WINDOW, backend_of, build
from tests.plugins.attention import reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_flash_attn = pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is None, reason='needs: pip install "sftcore[flash-2]"'
)
PLUGINS = [SDPA, Varlen, Flash1, pytest.param(Flash2, marks=needs_flash_attn), Flex]
MODELS = ["Llama", "Qwen3", "Gemma3"]
SHORT: reference.Rows = [[5, 1, 7, 8], [8, 4, 7, 2]]
"""No document is longer than the sliding window, which flash-1 refuses on a GPU."""
FLASH = "aten::_scaled_dot_product_flash_attention"


def on_gpu(name, attention="sdpa", dtype="bfloat16"):
    # Heads of 32: Triton's and flash-attn's kernels want more than the 8 of the other tests
    sizes = {"hidden_size": 128, "head_dim": 32}
    overrides = sizes if name != "Llama" else {"hidden_size": 128}
    return build(name, attention, dtype=dtype, **overrides).cuda()


@pytest.fixture(autouse=True)
def _full_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_packed_rows_give_loss_and_gradients_of_documents_alone_in_half_precision(plugin, model):
    backend = backend_of(plugin)
    rows, longest = (SHORT, WINDOW) if plugin is Flash1 else (reference.ROWS, None)
    ids = reference.ids_of(rows, device="cuda")
    own = on_gpu(model, backend.implementation)
    proof = keep_documents_apart(own, backend, flattened=False, max_length=longest)
    assert proof.way.name == ("boundaries" if backend.boundaries else "positions")
    assert proof.gaps.neighbours == 0
    reference.assert_same(reference.packed(own, ids, proof.way), reference.alone(on_gpu(model), ids), 5e-2)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("plugin", [SDPA, Varlen, Flex])
def test_packed_rows_give_loss_and_gradients_of_documents_alone_in_float32(plugin, model):
    backend = backend_of(plugin)
    ids = reference.ids_of(reference.ROWS, device="cuda")
    own = on_gpu(model, backend.implementation, "float32")
    proof = keep_documents_apart(own, backend, flattened=False)
    wanted = reference.alone(on_gpu(model, "eager", "float32"), ids)
    # flex multiplies in TF32 inside its own kernel, whatever torch's flag says
    reference.assert_same(reference.packed(own, ids, proof.way), wanted, 1e-2 if plugin is Flex else 1e-4)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("plugin", [one for one in PLUGINS if one is not Flash1])
def test_padded_rows_give_loss_and_gradients_of_documents_alone(plugin, model):
    backend = backend_of(plugin)
    ids = reference.ids_of(reference.ROWS, device="cuda")
    got = reference.padded(on_gpu(model, backend.implementation), ids)
    reference.assert_same(got, reference.alone(on_gpu(model), ids), 5e-2)


def ran(model, ids, way):
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        reference.packed(model, ids, way)
    return {event.key for event in profiler.key_averages()}


def test_flash_1_runs_torchs_flash_kernel_alone():
    backend = backend_of(Flash1)
    model = on_gpu("Llama", backend.implementation)
    proof = keep_documents_apart(model, backend, flattened=True)
    names = ran(model, reference.ids_of(reference.ROWS, device="cuda"), proof.way)
    assert {FLASH, f"{FLASH}_backward"} <= names
    assert not {name for name in names if "efficient_attention" in name or "attention_math" in name}


@pytest.mark.skipif(kernel() is None, reason="this torch has no varlen kernel with windows, scale and grouped heads")
def test_varlen_takes_all_documents_in_one_call_of_torchs_kernel():
    backend = backend_of(Varlen)
    model = on_gpu("Gemma3", backend.implementation)
    proof = keep_documents_apart(model, backend, flattened=True)
    names = ran(model, reference.ids_of(reference.ROWS, device="cuda"), proof.way)
    assert not {name for name in names if "scaled_dot_product" in name}


def test_flash_1_refuses_what_its_kernel_does_not_take_on_a_gpu():
    backend = backend_of(Flash1)
    ids = torch.arange(3, 27, device="cuda")[None]
    with pytest.raises(ModelError, match="does not support a sliding window, and a document has 24 tokens"):
        on_gpu("Gemma3", backend.implementation)(input_ids=ids, use_cache=False)
    with pytest.raises(ModelError, match="torch has no flash kernel for cuda, float32 and heads of 32"):
        on_gpu("Llama", backend.implementation, "float32")(input_ids=ids, use_cache=False)
    mask = torch.ones(1, 1, 24, 24, dtype=torch.bool, device="cuda").tril()
    with pytest.raises(ModelError, match="takes no mask on cuda"):
        on_gpu("Llama", backend.implementation)(input_ids=ids, attention_mask=mask, use_cache=False)


def test_flash_1_drops_attention_weights_on_a_gpu():
    backend = backend_of(Flash1)
    model = on_gpu("Llama", backend.implementation)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    ids = torch.arange(3, 27, device="cuda")[None]
    first, second = (model.train()(input_ids=ids, use_cache=False).logits for _ in range(2))
    assert not torch.equal(first, second)
