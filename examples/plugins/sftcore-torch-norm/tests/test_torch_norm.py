"""The package as its users meet it: it must be installed (`pip install ".[test]"`)."""

import copy

import pytest
import torch
from sftcore_torch_norm import TorchNorm

from sftcore import LoadedModel, Plan
from sftcore.testing import KernelTests

pytest_plugins = "sftcore.testing"


class TestTorchNorm(KernelTests):
    plugin = TorchNorm


def patch(model):
    return TorchNorm().patch_kernels(LoadedModel(model, None), Plan(()))


def run(model):
    ids = torch.randint(4, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    logits = model(ids).logits
    model.zero_grad()
    logits.float().logsumexp(-1).sum().backward()
    return logits, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_logits_and_gradients_are_those_of_the_model(tiny_model, dtype, bound):
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # norms whose weights are all 1 would show little
    plain = copy.deepcopy(tiny_model).to(dtype)
    patched = copy.deepcopy(tiny_model).to(dtype)
    assert patch(patched).replaced == ("rms_norm of 5 modules",)
    (logits, gradients), (expected, expected_gradients) = run(patched), run(plain)
    torch.testing.assert_close(logits, expected, rtol=bound, atol=bound)
    for one, same in zip(gradients, expected_gradients, strict=True):
        assert (one - same).norm() <= bound * same.norm()


def test_undo_leaves_the_model_as_it_was(tiny_model):
    before = {name: dict(vars(module)) for name, module in tiny_model.named_modules()}
    expected, _ = run(tiny_model)
    report = patch(tiny_model)
    assert any("forward" in vars(module) for module in tiny_model.modules())
    report.undo()
    assert {name: dict(vars(module)) for name, module in tiny_model.named_modules()} == before
    assert torch.equal(run(tiny_model)[0], expected)


def test_norms_that_compute_something_else_are_left_alone():
    from transformers import GemmaConfig, GemmaForCausalLM

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    report = patch(GemmaForCausalLM(GemmaConfig(vocab_size=64, num_key_value_heads=1, **sizes)))
    assert report.replaced == ()
    assert report.skipped == {"rms_norm": "3 modules compute something else"}
    assert report.undo is None
